"""What the trainer is fed: sources, documents, batches."""
