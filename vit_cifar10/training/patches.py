"""How many patches a ViT trains on. Fewer patches at first save most of the operations and little of the accuracy.

    patches = PatchSchedule(total_steps=1000, small_steps=600, first_keep=0.4)
    for step in range(1000):
        model.patch_drop.keep = patches.keep(step)
        logits = model(patches.shrink(images, step))

The network stays the same plain ViT, and is always evaluated with whole images and all patches.
"""

from torch.nn import functional as F

from vit_cifar10.utils.choices import PATCH_LEVELS


class PatchSchedule:
    """First, images of half the side; then, a growing fraction of the patches.

    Args:
        total_steps: number of steps of the run.
        small_steps: steps that use images of half the side, which have a quarter of the patches.
        first_keep: fraction of the patches that is kept after these steps. It grows linearly to 1 at the last step, in
            steps of an eighth.
    """

    def __init__(self, total_steps, small_steps=0, first_keep=1.0):
        self.total_steps = total_steps
        self.small_steps = small_steps
        self.first_keep = first_keep

    @classmethod
    def of_run(cls, steps_per_epoch, epochs, small_epochs=0.0, keep_patches=1.0):
        """The schedule that the flags of a run ask for."""
        return cls(epochs * steps_per_epoch, round(small_epochs * steps_per_epoch), keep_patches)

    def shrink(self, images, step):
        """The images (B, C, H, W) for `step`: unchanged, or (B, C, H / 2, W / 2), the means of 2 x 2 pixels."""
        return F.avg_pool2d(images, 2) if self.is_small(step) else images

    def is_small(self, step):
        """Whether `step` uses images of half the side."""
        return step < self.small_steps

    def keep(self, step):
        """The fraction of the patches to keep at `step`, a multiple of 1 / `PATCH_LEVELS`: in (0, 1]."""
        if self.is_small(step):
            return 1.0
        progress = (step - self.small_steps + 1) / max(1, self.total_steps - self.small_steps)
        keep = self.first_keep + (1 - self.first_keep) * min(1, progress)
        return max(1, round(PATCH_LEVELS * keep)) / PATCH_LEVELS

    def work(self, start, stop):
        """How much the steps from `start` to before `stop` compute: 1 for a step on all patches of whole images."""
        return sum(1 / 4 if self.is_small(step) else self.keep(step) for step in range(start, stop))
