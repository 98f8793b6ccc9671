"""What differs between two traces, message by message."""
