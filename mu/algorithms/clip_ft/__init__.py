"""Fine-tuning of a CLIP: continue training without the concept, so that the model may forget it."""
