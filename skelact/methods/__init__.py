"""Methods: one file a paper, each a LightningModule (:mod:`skelact.methods.base`)."""
