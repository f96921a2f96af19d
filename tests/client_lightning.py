"""`client_models.Labels` as a LightningModule, to be imported by Lightning's processes."""

import lightning
import torch
from client_models import Labels
from torch import nn


class Lit(lightning.LightningModule):
    def __init__(self, cell="gru", lr=0.2):
        super().__init__()
        self.save_hyperparameters()
        self.model = Labels(cell, num_layers=2)
        self.losses, self.epochs = [], []

    def training_step(self, batch, _):
        x, labels = batch
        loss = nn.functional.cross_entropy(self.model(x), labels)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self):
        self.epochs.append({n: p.detach().clone() for n, p in self.named_parameters()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
