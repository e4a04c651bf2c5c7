"""The SimCLR loss as a module: ``SimCLR(encoder)(views) -> loss``."""

from __future__ import annotations

from torch import Tensor, nn

from ecgmeta.augment import Augmenter, LearnedPolicy, score_surrogate
from ecgmeta.encoders import Encoder
from ecgmeta.runtime.errors import InputError
from ecgmeta.simclr.gather import gather, tie
from ecgmeta.simclr.nt_xent import record_losses
from ecgmeta.simclr.views import Views
from ecgmeta.simclr.weights import ExampleWeights


class SimCLR(nn.Module):
    """Encoder, projection head and NT-Xent, with an optional augmenter that learns.

    In the engine's terms: θ are the parameters of ``encoder`` and ``projector``, φ those of ``augmenter``, and the loss of
    one :class:`~ecgmeta.simclr.views.Views` is always the same function.

    Args:
        encoder: (batch, leads, samples) -> (batch, num_features).
        augmenter: applied to both views inside the loss, or None.
        weights: of the recordings' losses, or None; not together with a policy, whose score they would enter.
        temperature: of NT-Xent; 0.5 in the paper.
        projection: output size of the projection head; its hidden layer is as wide as the features, without BatchNorm,
            as in the paper.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmenter: Augmenter | None = None,
        weights: ExampleWeights | None = None,
        *,
        temperature: float = 0.5,
        projection: int = 128,
    ) -> None:
        super().__init__()
        # lightly takes seconds to import, so it is imported by whoever builds a model, not by whoever names this room.
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        if weights is not None and isinstance(augmenter, LearnedPolicy):
            raise InputError("SimCLR", "weights", "a policy beside them", "one of the two")
        self.encoder, self.augmenter, self.weights = encoder, augmenter, weights
        width = encoder.num_features
        self.projector = SimCLRProjectionHead(width, width, projection, batch_norm=False)
        self.temperature, self.loss = temperature, NTXentLoss(temperature=temperature)

    def forward(self, views: Views) -> Tensor:
        """NT-Xent of the two views of each record: a scalar. One forward pass serves both.

        In a data-parallel run each rank has an equal part of the batch, and the loss is that of the whole on every rank.
        With a policy its value is the same and its derivative has the score of the policy's choices in it.

        Raises:
            InputError: an augmenter without the noise that makes its output a function of ``views``.
        """
        if self.augmenter is not None and self.augmenter.training and views.noise is None:
            raise InputError("SimCLR", "noise of views", None, "what draw_views draws for the augmenter")
        x = views.x
        if self.augmenter is not None:
            x = tie(self.augmenter(x, views.noise), self.augmenter.parameters())
        first, second = (gather(part) for part in self.projector(self.encoder(x)).chunk(2))
        if isinstance(self.augmenter, LearnedPolicy) and self.augmenter.training:
            losses, effects = record_losses(first, second, self.temperature)
            now, drawn = (
                gather(value.view(2, -1).sum(0))
                for value in (self.augmenter.log_prob(views.noise), views.noise.log_prob)
            )
            return score_surrogate(losses, now, drawn, effects)
        if self.weights is not None:
            if views.rows is None:
                raise InputError("SimCLR", "rows of views", None, "the numbers of the recordings")
            losses, _ = record_losses(first, second, self.temperature)
            return (gather(self.weights(views.rows)) * losses).mean()
        return self.loss(first, second)
