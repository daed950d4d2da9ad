"""The Hydra configs, installed as skelact.conf."""
