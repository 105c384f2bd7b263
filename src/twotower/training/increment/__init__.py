"""What an incremental update keeps beside the model: histories, bounds, its durable journal."""
