"""Overrides that train each method in a second, on the tiny dataset of `tests/conftest.py`."""

_COMMON = [
    "data=custom", "data.name=tiny", "data.batch_size=8", "frames=8", "callbacks=minimal", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1", "trainer.max_epochs=3",
]  # fmt: skip
_STREAMS = [
    *_COMMON, "backbone=stgcn", "augment=skeletonclr", "backbone.hidden=2", "backbone.num_features=4",
    "method.streams=[joint,motion,bone]", "method.embedding=4",
]  # fmt: skip
_QUEUE = [*_STREAMS, "method.queue_size=20"]
_TARGET = [*_STREAMS, "method.projector_hidden=6", "method.predictor_hidden=6"]
_VIEWS = ["augment=umurl", "augment.transform.transforms.0.joints=2"]
_TOKENS = [
    *_COMMON, *_VIEWS, "backbone=dstformer", "backbone.width=8", "backbone.token_features=4", "backbone.depth=1",
    "backbone.num_heads=2", "backbone.dropout=0.1",
]  # fmt: skip
_ACTION = [*_TOKENS, "protocol=supervised", "protocol.baselines=false", "method.head_hidden=8", "method.head_lr=0.01"]

_MODAL = [
    *_COMMON, *_VIEWS, "backbone.width=8", "method.width=8", "method.num_heads=2", "method.fusion_depth=1",
    "protocol=supervised", "protocol.baselines=false",
]  # fmt: skip

#: Those with two stages enter the second after the first epoch.
RECIPES = {
    "umurl": [*_COMMON, *_VIEWS, "backbone.width=8", "method=umurl", "method.projector_width=16"],
    "skeletonclr": [*_QUEUE, "method=skeletonclr"],
    "crosclr": [*_QUEUE, "method=crosclr", "method.cross_epoch=1"],
    "aimclr": [*_QUEUE, "method=aimclr", "method.mining_epoch=1", "augment=aimclr"],
    "skeletonbyol": [*_TARGET, "method=skeletonbyol"],
    "cmal": [*_TARGET, "method=cmal"],
    "caca": [*_TARGET, "method=caca", "method.cross_epoch=1"],
    "maskclr": [*_ACTION, "method=maskclr", "method.msk_path_start_epoch=1"],
    "motionbert": [*_ACTION, "method=motionbert"],
    "actionmae": [*_MODAL, "method=actionmae"],
    "supcon": [*_TOKENS, "method=supcon", "method.embedding=8", "data.per_class=4"],
}
