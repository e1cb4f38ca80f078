"""The networks: a Vision Transformer and a convolutional baseline, built from their parts.

    image -> PatchEmbed -> [class token, patches] + positions -> depth x Block -> norm -> pool -> head -> logits

`VisionTransformer` is the pre-norm network of "An Image is Worth 16x16 Words" (https://arxiv.org/abs/2010.11929). Its
argument names, state-dict keys and numerics match `timm.models.VisionTransformer`, and each can load the weights of the
other.

    model = build_model({"model": "vit", "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3})
    logits = model(images)                                      # images: float (B, 3, 32, 32), normalized
    logits, attentions = model.forward_with_attention(images)   # attentions: one (B, heads, N, N) per block

To add a network, derive a class from `Network`.

Shapes in comments: B images, C channels of H x W pixels, N tokens of width D.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

NETWORKS = {}  # {name: class}, which `Network` fills


class Network(nn.Module):
    """What all networks offer. A subclass registers under its `name`: `class FastCNN(Network, name="fast-cnn")`.

    Attributes:
        title: the kind of network, in a word.
        kind: which methods of explanation fit: "vit", "cnn" or, for a network from elsewhere, "other".
        has_attention: whether there is `forward_with_attention`.
        block_name: what `parts_from_head_to_input` calls the repeated parts.
        head_name: the last layer's name in the state dict.
        grid_size: number of patches along each side of the image. Explanations remove patches. A network without
            patches has cells of 4 x 4 pixels instead.
        grad_cam_layer: the module whose output Grad-CAM explains: (B, channels, h, w), or tokens (B, N, channels), the
            patches last.
    """

    title, block_name, head_name = "network", "block", "head"
    kind = "cnn"
    has_attention = False

    def __init_subclass__(cls, name, **options):
        super().__init_subclass__(**options)
        NETWORKS[name] = cls

    def parts_from_head_to_input(self):
        """The network's parts, from the head back to the input, as a list of (name, state-dict prefixes)."""
        raise NotImplementedError

    def describe(self):
        """A short description: the title."""
        return self.title

    def weights_for(self, img_size):
        """The state dict of this network for square images of any size, without the weights that do not fit them."""
        return self.state_dict()


class PatchEmbed(nn.Module):
    """Cut images into patches and project each patch to a token: (B, in_chans, H, W) -> (B, num_patches, embed_dim).

    A convolution whose stride equals its kernel size applies the same linear layer to every patch. With
    `strict_img_size = False`, the images may have other sizes than `img_size`, and then have more or fewer patches.
    """

    def __init__(self, img_size, patch_size, in_chans, embed_dim):
        super().__init__()
        if patch_size < 1 or img_size % patch_size:
            divisors = [str(size) for size in range(1, img_size + 1) if img_size % size == 0]
            raise ValueError(
                f"patch_size {patch_size} does not divide img_size {img_size}; choose one of {', '.join(divisors)}"
            )
        self.img_size = img_size
        self.strict_img_size = True
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images):
        if self.strict_img_size:
            for side in (images.shape[-2], images.shape[-1]):  # without `if`, so that the network can be traced
                message = f"the network takes images of {self.img_size}x{self.img_size} pixels"
                torch._assert(side == self.img_size, message)
        patches = self.proj(images)  # (B, D, H / patch_size, W / patch_size)
        return patches.flatten(2).transpose(1, 2).contiguous()  # (B, N, D); all blocks keep this memory layout


class PatchDropout(nn.Module):
    """PatchDropout (https://arxiv.org/abs/2208.07220): in training, keep random patches of each image.

    (B, N, D) -> (B, round(keep * N), D), in random order. Positions must have been added before. Fewer patches take
    less time. `keep` may change from step to step; at 1, all patches are kept.
    """

    def __init__(self, keep=1.0):
        super().__init__()
        self.keep = keep

    def forward(self, patches):
        if not self.training or self.keep == 1:
            return patches
        B, N, D = patches.shape
        chosen = torch.rand(B, N, device=patches.device).argsort(dim=1)[:, : max(1, round(self.keep * N))]
        return patches.gather(1, chosen[:, :, None].expand(-1, -1, D))


@torch.fx.wrap  # the computation depends on the device, which is unknown in a symbolic trace
def dropout(x, p):
    """`F.dropout`. On the CPU, it is computed from 16 random bits per value, which takes a third of the time."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # 64 random bits each
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    zeroed = min(round(p * 2**16), 2**16 - 1)  # the lowest `zeroed` of the 65,536 values of `bits` set x to zero
    return x * (bits >= zeroed - 2**15).to(x.dtype).div_(1 - zeroed / 2**16)


class Dropout(nn.Dropout):
    """`nn.Dropout`, computed by `dropout`."""

    def forward(self, x):
        return dropout(x, self.p) if self.training and self.p else x


@torch.fx.wrap
def attend(query, key, value, dropout_p):
    """Attention: queries, keys and values, (B, heads, N, D / heads) each -> (B, heads, N, D / heads).

    PyTorch's fused kernel never stores the N x N weights. In low precision on the CPU, where its backward pass is six
    times slower, the computation is written out instead.
    """
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)  # (B, heads, N, N)
    return (dropout(weights, dropout_p) if dropout_p else weights) @ value


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D).

    Training uses a fused kernel; see `attend`. `forward_with_weights` writes the same computation out, so that the
    weights (B, heads, N, N) are part of the graph and can be inspected and differentiated. As in timm, setting
    `fused_attn = False` makes `forward` use this computation too.
    """

    def __init__(self, dim, num_heads, attn_drop, proj_drop):
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads {num_heads} is too small; choose 1 or more")
        if dim % num_heads:
            nearest = max(1, round(dim / num_heads)) * num_heads
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}; choose {nearest} instead")
        self.num_heads = num_heads
        self.fused_attn = True
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)

    def forward(self, x):
        if not self.fused_attn:
            return self.forward_with_weights(x)[0]
        query, key, value = self.project(x)
        return self.merge(attend(query, key, value, self.attn_drop.p if self.training else 0.0))

    def forward_with_weights(self, x):
        """Return the output of `forward` and the attention weights (B, heads, N, N).

        Row i of the weights shows where token i looks.
        """
        heads, weights = self.mix(x)
        return self.merge(heads), weights

    def mix(self, x, rule=lambda product: product):
        """Return the outputs of the heads, (B, heads, N, D / heads), and the attention weights (B, heads, N, N).

        `rule` is applied to both matrix products. Explanations give them another gradient with it.
        """
        query, key, value = self.project(x)
        weights = rule(query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)  # (B, heads, N, N)
        return rule(self.attn_drop(weights) @ value), weights

    def project(self, x):
        """Project tokens (B, N, D) to queries, keys and values, (B, heads, N, D / heads) each."""
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)  # (B, N, 3, heads, D / heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, D / heads) each

    def merge(self, heads):
        """Merge the outputs of the heads, (B, heads, N, D / heads), and project them to (B, N, D)."""
        tokens = heads.transpose(1, 2).flatten(2)  # (B, N, D)
        return self.proj_drop(self.proj(tokens))


GELUS = {"gelu": "none", "gelu_tanh": "tanh"}  # timm's names of activations, and PyTorch's names of approximations


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, applied to each token separately: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim, hidden_dim, drop, act_layer="gelu"):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate=GELUS[act_layer])
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth (https://arxiv.org/abs/1603.09382): in training, drop a residual branch for random images.

    For the other images, the branch is scaled by 1 / (1 - drop_prob), so that its expected value does not change.
    """

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training or self.drop_prob == 0:
            return x
        keep_prob = 1 - self.drop_prob
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep_prob)  # (B, 1, 1) for tokens
        return x * keep / keep_prob


class Block(nn.Module):
    """One pre-norm transformer block, (B, N, D) -> (B, N, D): attention mixes the tokens, then an MLP transforms each.

    Both are residual branches.
    """

    def __init__(self, dim, num_heads, mlp_ratio, drop, attn_drop, drop_path, act_layer="gelu", norm_eps=1e-6):
        super().__init__()
        hidden_dim = int(dim * mlp_ratio)
        if hidden_dim < 1:
            raise ValueError(f"mlp_ratio {mlp_ratio:g} leaves the MLP without hidden units; raise it")
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, attn_drop, drop)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_dim, drop, act_layer)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x):
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def forward_with_weights(self, x):
        """Return the output of `forward` and the attention weights (B, heads, N, N)."""
        mixed, weights = self.attn.forward_with_weights(self.norm1(x))
        x = x + self.drop_path1(mixed)
        return x + self.drop_path2(self.mlp(self.norm2(x))), weights


class VisionTransformer(Network, name="vit"):
    """Vision Transformer with timm's names and numerics.

    Args:
        img_size: side of the square images in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        in_chans: number of channels of the images.
        num_classes: number of logits.
        global_pool: "token" classifies from the class token. "avg" classifies from the mean of the patch tokens, with
            the final norm after the pooling, as in timm. "distilled" classifies from the class token and the token
            after it, DeiT's distillation token (https://arxiv.org/abs/2012.12877), next to each other.
        class_token: whether the network has a class token. With "avg", the class token only takes part in the
            attention, and is better left out.
        embed_dim: width of a token, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: number of attention heads per block.
        mlp_ratio: hidden width of the MLP as a multiple of `embed_dim`.
        drop_rate: dropout rate after the position embedding, the attention's projection and both MLP layers, as in the
            paper. timm calls it `pos_drop_rate` and `proj_drop_rate`.
        attn_drop_rate: dropout rate of the attention weights.
        drop_path_rate: stochastic depth rate of the last block. It grows linearly from 0 in the first block.

    The other arguments describe networks from elsewhere, which convert.py reads:
        reg_tokens: number of learned tokens after the class token, such as registers
            (https://arxiv.org/abs/2309.16588).
        pre_norm: whether to normalize the tokens before the first block, as CLIP does.
        fc_norm: whether the final norm comes after the pooling. None does this with "avg" only.
        act_layer: "gelu" or, for its approximation, "gelu_tanh".
        norm_eps: the epsilon of all layer norms.

    Raises:
        ValueError: the sizes do not fit each other. The message suggests sizes that do.
    """

    title, kind = "ViT", "vit"
    has_attention = True

    def __init__(
        self,
        img_size=32,
        patch_size=4,
        in_chans=3,
        num_classes=10,
        global_pool="token",
        class_token=True,
        embed_dim=192,
        depth=12,
        num_heads=3,
        mlp_ratio=4.0,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
        reg_tokens=0,
        pre_norm=False,
        fc_norm=None,
        act_layer="gelu",
        norm_eps=1e-6,
    ):
        super().__init__()
        if global_pool not in ("token", "avg", "distilled"):
            raise ValueError(f'global_pool {global_pool!r} is unknown; choose "token", "avg" or "distilled"')
        if global_pool != "avg" and not class_token:
            raise ValueError(f'global_pool "{global_pool}" needs a class token; choose "avg"')
        if global_pool == "distilled" and reg_tokens != 1:
            raise ValueError(f'global_pool "distilled" needs reg_tokens 1, not {reg_tokens}')
        if act_layer not in GELUS:
            raise ValueError(f"act_layer {act_layer!r} is unknown; choose one of {', '.join(GELUS)}")
        self.global_pool = global_pool
        self.embed_dim = embed_dim
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        if not 0 <= reg_tokens < 2 * self.grid_size:  # so that the number of tokens tells the number of patches
            raise ValueError(
                f"reg_tokens {reg_tokens} is not from 0 to {2 * self.grid_size - 1}; choose another number"
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        num_tokens = self.num_prefix_tokens + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
        self.patch_drop = PatchDropout()
        self.pos_drop = Dropout(drop_rate)
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        drop_paths = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, drop_rate, attn_drop_rate, drop_path, act_layer, norm_eps)
            for drop_path in drop_paths
        )
        self.pools_first = global_pool == "avg" if fc_norm is None else fc_norm
        self.norm = nn.Identity() if self.pools_first else nn.LayerNorm(embed_dim, eps=norm_eps)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if self.pools_first else nn.Identity()
        self.head = nn.Linear(embed_dim * (2 if global_pool == "distilled" else 1), num_classes)
        self.init_weights()

    @property
    def grid_size(self):
        """Number of patches along each side of the image."""
        return self.patch_embed.grid_size[0]

    @property
    def grad_cam_layer(self):
        """The module whose output Grad-CAM explains: the first norm of the last block, with output (B, N, D)."""
        return self.blocks[-1].norm1

    def parts_from_head_to_input(self):
        blocks = [(f"block {i + 1}", (f"blocks.{i}.",)) for i in reversed(range(len(self.blocks)))]
        tokens = ("cls_token", "reg_token", "pos_embed", "pos_drop.", "norm_pre.")
        embedding = ("embedding", ("patch_embed.", *tokens))
        return [("head", ("head.", "norm.", "fc_norm.")), *blocks, embedding]

    def describe(self):
        """A short description, such as "ViT 12 x 192, patch 4": depth, width and patch size."""
        return f"{self.title} {len(self.blocks)} x {self.embed_dim}, patch {self.patch_embed.proj.kernel_size[0]}"

    def init_weights(self):
        """Draw weights from a truncated normal with standard deviation 0.02 and set biases to zero, as DeiT does.

        The patch projection, a linear layer on flattened patches, starts from Xavier's uniform distribution instead.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))  # fills the weight through a view
        nn.init.zeros_(self.patch_embed.proj.bias)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images):
        """Images (B, C, H, W) -> tokens (B, N, D): the class token, if there is one, registers, and the patches."""
        positions = self.pos_embed if self.patch_embed.strict_img_size else self.resized_positions(images.shape[-1])
        patches = self.patch_embed(images) + positions[:, self.num_prefix_tokens :]  # (B, num_patches, D)
        tokens = self.patch_drop(patches)
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            prefix = torch.cat(prefix, dim=1) + positions[:, : self.num_prefix_tokens]
            tokens = torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (B, N, D)
        return self.norm_pre(self.pos_drop(tokens))

    def resized_positions(self, img_size):
        """The position embeddings for square images of any size, interpolated as in timm: (1, N, D)."""
        grid = img_size // self.patch_embed.proj.kernel_size[0]
        if grid == self.grid_size:
            return self.pos_embed
        prefix, patches = self.pos_embed.split([self.num_prefix_tokens, self.patch_embed.num_patches], dim=1)
        maps = patches.unflatten(1, self.patch_embed.grid_size).permute(0, 3, 1, 2)  # (1, D, grid_size, grid_size)
        maps = F.interpolate(maps.float(), size=(grid, grid), mode="bicubic", antialias=True)
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)

    def weights_for(self, img_size):
        """The state dict of this network for square images of any size: the position embeddings are resized."""
        with torch.no_grad():
            return {**self.state_dict(), "pos_embed": self.resized_positions(img_size)}

    def forward_features(self, images):
        """Images (B, C, H, W) -> tokens (B, N, D) after the last block."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pool(self, x):
        """Tokens (B, N, ...) -> what the head reads, (B, 1, ...), or (B, 2, ...) with a distillation token."""
        if self.global_pool == "avg":
            return x[:, self.num_prefix_tokens :].mean(dim=1, keepdim=True)
        return x[:, : 2 if self.global_pool == "distilled" else 1]

    def forward_head(self, x):
        """Tokens after the last block and `norm` (B, N, D) -> logits (B, num_classes)."""
        return self.head(self.fc_norm(self.pool(x)).flatten(1))

    def forward(self, images):
        """Normalized images (B, C, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_with_attention(self, images):
        """Return logits (B, num_classes) and the attention weights of each block, a list of (B, heads, N, N).

        Row i of the weights shows where token i looks. The first token is the class token, if there is one. Registers
        follow, and then the patches row by row. The weights are part of the logits' graph, so gradients with respect to
        them exist.
        """
        x = self.embed(images)
        attentions = []
        for block in self.blocks:
            x, weights = block.forward_with_weights(x)
            attentions.append(weights)
        return self.forward_head(self.norm(x)), attentions


class SimpleCNN(Network, name="cnn"):
    """The convolutional baseline: four 3x3 convolutions, each with BatchNorm, ReLU and 2x2 max pooling.

    image -> 4 x (convolution -> BatchNorm -> ReLU -> max-pool) -> flatten -> hidden layer -> ReLU -> dropout -> logits

    By default, the convolutions have 32, 64, 128 and 256 channels and turn a 32x32 image into 256 x 2 x 2 values. The
    hidden layer then has 512 units.

    Args:
        img_size: side of the square images in pixels, at least 16.
        in_chans: number of channels of the images.
        num_classes: number of logits.
        width: number of channels of the first convolution. All other widths scale with it.
        drop_rate: dropout rate after the hidden layer.

    Raises:
        ValueError: `img_size` is below 16. Four poolings would reduce such an image to nothing.
    """

    title, block_name, head_name = "CNN", "convolution", "classifier.4"

    def __init__(self, img_size=32, in_chans=3, num_classes=10, width=32, drop_rate=0.3):
        super().__init__()
        self.grid_size = img_size // 4
        if img_size < 16:
            raise ValueError(f"img_size {img_size} is too small for the CNN's four poolings; choose 16 or more")
        widths = (in_chans, width, 2 * width, 4 * width, 8 * width)
        self.features = nn.Sequential(
            *(self.stage(*pair) for pair in itertools.pairwise(widths)),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * (img_size // 16) ** 2, 16 * width),
            nn.ReLU(),
            Dropout(drop_rate),
            nn.Linear(16 * width, num_classes),
        )
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions

    @staticmethod
    def stage(in_width, out_width):
        """One convolution with BatchNorm, ReLU and max pooling: (B, in_width, H, W) -> (B, out_width, H / 2, W / 2).

        The convolution has no bias, because BatchNorm would subtract it again.
        """
        conv = nn.Conv2d(in_width, out_width, kernel_size=3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_width), nn.ReLU(), nn.MaxPool2d(2))

    @property
    def grad_cam_layer(self):
        """The module whose output Grad-CAM explains: the last ReLU, with output (B, 8 * width, H / 8, W / 8).

        The convolution before it is unsuitable: without batch normalization, a value of zero has no meaning.
        """
        return self.features[-1][2]

    def parts_from_head_to_input(self):
        stages = [(f"convolution {i + 1}", (f"features.{i}.",)) for i in reversed(range(len(self.features)))]
        return [("head", ("classifier.4.",)), ("hidden layer", ("classifier.1.",)), *stages]

    def weights_for(self, img_size):
        """The state dict of this network for square images of any size, without the weights that do not fit them.

        Only the convolutions fit if the images do not give the hidden layer as many inputs as it has now.
        """
        weights = self.state_dict()
        channels = self.features[-1][0].out_channels
        if self.classifier[1].in_features == channels * (img_size // 16) ** 2:
            return weights
        return {name: value for name, value in weights.items() if name.startswith("features.")}

    def forward(self, images):
        """Normalized images (B, C, H, W) -> logits (B, num_classes)."""
        features = self.features(images)  # (B, 8 * width, H / 16, W / 16)
        return self.classifier(features)


class FastCNN(Network, name="fast-cnn"):
    """A convolutional network that learns in a few epochs, after airbench94 (https://arxiv.org/abs/2404.00498).

    image -> whitening -> GELU -> 3 x (convolution -> max-pool -> BatchNorm -> GELU -> convolution -> BatchNorm -> GELU)
    -> global max-pool -> logits

    Three things make it learn fast. Its first layer, a fixed convolution of 2 x 2 pixels, decorrelates the values of
    the image; `whiten` computes it from training images. The other kernels start as the identity, as far as they have
    input channels. And BatchNorm has no scale, so that Muon can keep the norm of every kernel: see the optimizer
    `muon-sgd`.

    Args:
        img_size: side of the square images in pixels, at least 9.
        in_chans: number of channels of the images.
        num_classes: number of logits.
        width: number of channels in the first group. The second and the third one have four times as many.

    Raises:
        ValueError: `img_size` is below 9. The whitening and three poolings would reduce such an image to nothing.
    """

    title, block_name = "fast CNN", "group"
    logit_scale = 1 / 9

    def __init__(self, img_size=32, in_chans=3, num_classes=10, width=64):
        super().__init__()
        if img_size < 9:
            raise ValueError(f"img_size {img_size} is too small for the fast CNN's poolings; choose 9 or more")
        self.grid_size = img_size // 4
        patch_values = 4 * in_chans
        self.whitening = nn.Conv2d(in_chans, 2 * patch_values, kernel_size=2)
        self.whitening.weight.requires_grad_(False)
        nn.init.zeros_(self.whitening.bias)
        widths = (2 * patch_values, width, 4 * width, 4 * width)
        self.act = nn.GELU()
        self.groups = nn.Sequential(*(self.group(*pair) for pair in itertools.pairwise(widths)))
        self.pool = nn.MaxPool2d((img_size - 1) // 8)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions

    @staticmethod
    def group(in_width, out_width):
        """Two convolutions, with max pooling after the first one: (B, in_width, H, W) -> (B, out_width, H/2, W/2)."""
        layers = []
        for inputs in (in_width, out_width):
            conv = nn.Conv2d(inputs, out_width, kernel_size=3, padding=1, bias=False)
            nn.init.dirac_(conv.weight[:inputs].detach())  # fills these kernels through a view
            norm = nn.BatchNorm2d(out_width, eps=1e-12, momentum=0.4)
            norm.weight.requires_grad_(False)
            layers += [conv, norm, nn.GELU()]
        return nn.Sequential(layers[0], nn.MaxPool2d(2), *layers[1:])

    @torch.no_grad()
    def whiten(self, images, eps=5e-4):
        """Set the first convolution from normalized training images, (B, C, H, W).

        Its kernels are the eigenvectors of the covariance of patches of 2 x 2 pixels, divided by the square root of
        their eigenvalues plus `eps`, and the negatives of these kernels, because the GELU removes negative values.
        """
        patches = F.unfold(images, 2).transpose(0, 1).flatten(1)  # (4 * C, B * patches)
        eigenvalues, eigenvectors = torch.linalg.eigh((patches @ patches.T / patches.shape[1]).double())
        kernels = (eigenvectors / (eigenvalues + eps).sqrt()).T  # a row each
        signs = kernels[torch.arange(len(kernels)), kernels.abs().argmax(dim=1)].sign()
        kernels = kernels * signs[:, None]  # a library may return an eigenvector or its negative
        self.whitening.weight.copy_(torch.cat([kernels, -kernels]).view_as(self.whitening.weight))

    @property
    def grad_cam_layer(self):
        """The module whose output Grad-CAM explains: the last GELU, with output (B, 4 * width, H / 8, W / 8)."""
        return self.groups[-1][-1]

    def parts_from_head_to_input(self):
        groups = [(f"group {i + 1}", (f"groups.{i}.",)) for i in reversed(range(len(self.groups)))]
        return [("head", ("head.",)), *groups, ("whitening", ("whitening.",))]

    def forward(self, images):
        """Normalized images (B, C, H, W) -> logits (B, num_classes)."""
        features = self.groups(self.act(self.whitening(images)))  # (B, 4 * width, H / 8, W / 8)
        return self.head(self.pool(features).flatten(1)) * self.logit_scale


def build_model(config):
    """Build a network from a plain dict: `{"model": "vit", "cnn" or "fast-cnn", **constructor arguments}`.

    Raises:
        ValueError: the network or an argument is unknown, or the sizes do not fit each other.
    """
    arguments = dict(config)
    name = arguments.pop("model", None)
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown; choose one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"these arguments do not fit the network {name}: {error}") from error


def build_without_memory(config):
    """`build_model`, without memory for the weights, on PyTorch's "meta" device."""
    with torch.device("meta"):
        return build_model(config)


def count_parameters(model):
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(config, backward=False, keep_patches=1.0):
    """Number of floating-point operations in the matrix products and convolutions for one image.

    Args:
        config: a dict for `build_model`. The network is built without allocating memory for its weights.
        backward: whether to count the backward pass in addition to the forward pass.
        keep_patches: fraction of the patches that the `PatchDropout` of a ViT keeps.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes a tenth of a second to import

    model = build_without_memory(config).train(backward)
    images = torch.empty(1, config.get("in_chans", 3), config["img_size"], config["img_size"], device="meta")
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = False  # the counter does not support every fused kernel
        if isinstance(module, PatchDropout):
            module.keep = keep_patches
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(images)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()
