"""From a trained model to something servable."""
