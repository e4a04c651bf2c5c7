"""Where ECG meets the engine: configuration, pre-training, fine-tuning, evaluation and report of a run folder."""
