"""What is learned: token losses, and what they are losses of."""

from hyperflax.objectives.episode import HypermodelObjective
from hyperflax.objectives.language_model import T5Objective
from hyperflax.objectives.protocol import Objective
from hyperflax.objectives.token_loss import TokenLoss, token_loss

__all__ = ["HypermodelObjective", "Objective", "T5Objective", "TokenLoss", "token_loss"]
