"""The two-tower retrieval system."""
