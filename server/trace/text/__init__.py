"""A trace in words: messages, events, values and names as people and JSON have them."""
