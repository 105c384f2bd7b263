"""What an event is, and how events become labelled examples."""
