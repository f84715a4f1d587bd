"""The smallest module of Lightning, as the text that programs of tests begin with."""

LIT = """
import torch, lightning
class Lit(lightning.LightningModule):
    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.lr, self.net = lr, torch.nn.Linear(4, 4)
    def training_step(self, batch, index):
        return self.net(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
"""
