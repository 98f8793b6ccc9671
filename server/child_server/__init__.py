"""What all have in common that start a server in a process of its own: is it ready, and what has it said if not."""
