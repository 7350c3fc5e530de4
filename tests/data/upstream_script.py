"""A script for AdePT-ML 2.1, as written for it; upstream_script.txt is what it printed there."""

import numpy as np
import torch
from adeptml import HybridModel, train
from adeptml.configs import HybridConfig, MLPConfig, PhysicsConfig
from adeptml.train_utils import train_step
from torch.utils.data import DataLoader, TensorDataset


def physics(x, a):
    return a * x**2


def jacobian(x, a):
    return 2 * (a * x)[:, :, None] * np.eye(x.shape[1])


def vjp(x, grad_output, a):
    return 2 * a * x * grad_output


def split(x, a):
    return a * x**2, lambda g: (2 * a * x * g, None)


MODES = {
    "jacobian": PhysicsConfig(physics, jacobian),
    "vjp": PhysicsConfig(physics, vjp, True),
    "split": PhysicsConfig(forward_func=split, use_split_vjp=True),
}

torch.set_default_dtype(torch.float64)
x = torch.linspace(-1, 1, 256).reshape(64, 4)
y, a = x.sum(1, keepdim=True), torch.full((64, 1), 0.5)
data = TensorDataset(x, y, a)
for name, config in MODES.items():
    torch.manual_seed(0)
    cfg = HybridConfig(
        models={
            "nn": MLPConfig(4, 8, 4, 2, "swish", "softplus"),
            "physics": config,
            "own": torch.nn.Linear(7, 2),
            "head": MLPConfig(2, 3, 1, 0, "relu", "identity"),
        },
        model_inputs={"own": {"physics": None, "Input": [0, -1, 0]}},
    )
    model = HybridModel(cfg)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    loss_fn = torch.nn.MSELoss()
    loader = DataLoader(data, batch_size=16)
    train(model, loader, loader, optimizer, loss_fn, scheduler, name, 5, True, 2, 1.0)
    step = train_step(model, optimizer, loss_fn, scheduler, grad_clip=1.0)
    print(f"{step(x, y, [a]):.10f} {step(x, y, [a], test=True):.10f}")
    point = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(point, phy_args=[a]).sum(), point)
    print(f"{grad.norm():.10f} {scheduler.get_last_lr()}")
