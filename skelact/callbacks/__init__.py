"""What watches a training run: cards, logs, bars, monitors."""
