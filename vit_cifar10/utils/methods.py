"""The table of methods that explain a prediction.

The flags of test.py, the GIF, the page and the faithfulness test follow from it. To add a method, write its function
in explain/, and an entry here. The table imports no PyTorch, so that --help is fast.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """An entry of the table.

    Attributes:
        name: its name in tables, pictures and on the page.
        function: "module:function", imported when it is first used, or the function itself. It takes
            (model, images (B, 3, H, W), targets (B,)) and returns relevance (B, h, w); see `Method.explain`.
        legend: what its maps show, for a GIF and for the page. {predicted} stands for the class.
        networks: the kinds of network that it can explain: "vit", "cnn", "other"; see `Network` in model.py.
        is_signed: whether negative values speak against the class.
        is_class_blind: whether the map is the same for every class.
        by_layer: what the map of a layer shows, as a word before its name: attention "in" the layer, relevance of the
            tokens "entering" it, logits "after" it, or all layers up "to" it. Empty if there is only one map. The
            function otherwise returns relevance (depth, B, h, w). The last map is the result; with "entering", which
            goes from the output to the input, it is the first one.
        is_attention: whether its values are attention weights, which add up to 1 over all tokens.
        pool: what a ViT must classify from (its `global_pool`), if not any.
        takes_attention: whether the function takes a ViT's attention weights and `global_pool` instead.
        explains_all_classes: whether the function takes (model, images) and explains all classes at once, (B, C, h, w).
        is_slow: whether only users who ask for it should wait for it.
        page_key: the name under which page/worker.js computes it. Without one, live pages leave the method out.
        options: keyword arguments of the function.
    """

    name: str
    function: object
    legend: str = ""
    networks: tuple = ("vit", "cnn", "other")
    is_signed: bool = False
    is_class_blind: bool = False
    by_layer: str = ""
    pool: str = ""
    is_attention: bool = False
    takes_attention: bool = False
    explains_all_classes: bool = False
    is_slow: bool = False
    page_key: str = ""
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def result(self):
        """Which of the maps by layer is the result."""
        return 0 if self.by_layer == "entering" else -1


VIT, CNN = ("vit",), ("cnn",)
FROM_ATTENTION = {"networks": VIT, "is_class_blind": True, "takes_attention": True}
MAPS, PROPAGATION = "vit_cifar10.explain.maps", "vit_cifar10.explain.propagation"
SIGNED = "what adds to the score of {predicted} (red) or takes from it (blue)"

METHODS = {
    "attention": MethodEntry(
        "attention",
        f"{MAPS}:attention_to_patches",
        "where this layer looks, averaged over its heads",
        by_layer="in",
        is_attention=True,
        page_key="attention",
        **FROM_ATTENTION,
    ),
    "rollout": MethodEntry(
        "rollout",
        f"{MAPS}:rollout_by_layer",
        "attention of all layers so far; the same for every class",
        by_layer="to",
        page_key="rollout",
        **FROM_ATTENTION,
    ),
    "gradient-rollout": MethodEntry(
        "gradient rollout",
        f"{MAPS}:gradient_rollout_by_layer",
        "the attention so far that raises the score of {predicted}",
        networks=VIT,
        by_layer="to",
        page_key="gradientRollout",
    ),
    "grad-cam": MethodEntry(
        "Grad-CAM",
        f"{MAPS}:grad_cam",
        "the channels of one layer, weighted by how much they raise the score of {predicted}",
        page_key="gradCam",
    ),
    "attn-lrp": MethodEntry(
        "AttnLRP",
        f"{PROPAGATION}:attn_lrp_by_layer",
        SIGNED,
        networks=VIT,
        is_signed=True,
        by_layer="entering",
        page_key="evidence",
    ),
    "res-lrp": MethodEntry(
        "ResLRP",
        f"{PROPAGATION}:res_lrp_by_layer",
        f"{SIGNED}; AttnLRP with another rule for residual connections",
        networks=VIT,
        is_signed=True,
        by_layer="entering",
    ),
    "fullgrad-plus": MethodEntry(
        "FullGrad+",
        f"{PROPAGATION}:full_grad_plus",
        f"{SIGNED}, summed over the tokens and biases of all layers",
        networks=VIT,
        is_signed=True,
    ),
    "patch-logits": MethodEntry(
        "patch logits",
        "vit_cifar10.explain.lens:patch_logits",
        "the score of {predicted} in each patch; after the last layer, their mean is the network's score",
        networks=VIT,
        pool="avg",
        is_signed=True,
        by_layer="after",
        page_key="patchLogits",
    ),
    "deep-lift": MethodEntry(
        "DeepLIFT",
        f"{PROPAGATION}:deep_lift",
        f"{SIGNED}, compared to an image in the mean color",
        networks=CNN,
        is_signed=True,
        page_key="evidence",
    ),
    "masks": MethodEntry(
        "masks",
        "vit_cifar10.explain.masks:mask_maps",
        f"{SIGNED}, estimated by removing random patches",
        is_signed=True,
        explains_all_classes=True,
        is_slow=True,
    ),
}

# The flags of the maps that are shown by default. The last one of each network is the fast method that did best: on the
# shipped networks or, for large ViTs, in the papers that measured these; see docs/explanations.md.
SHOWN = {
    "vit": ("attention", "attn-lrp"),
    "large vit": ("attention", "res-lrp"),
    "cnn": ("deep-lift",),
    "other": ("grad-cam",),
}
LARGE = 224  # pixels: the side of the images of a large ViT, at least


def find_method(name):
    """The entry with a name, or None."""
    return next((entry for entry in METHODS.values() if entry.name == name), None)
