"""Names of PCAN's head, which recognisers of any two-stream network carry.

Source: 9527haoyunlai/PCANetwork, kunli-cs/PCAN (RGBPoseHead).
"""

from jaxact.weights.table import Rule, dense

_STREAMS = ("rgb", "pose")
_LAYERS = (
    ("fc_{stream}", "{stream}"),
    ("fc_{stream}_coarse", "{stream}_coarse"),
    ("fr_{stream}.spatio_cl_net.cl_fc", "{stream}_fine_proj"),
    ("fr_coarse_{stream}.spatio_cl_net.cl_fc", "{stream}_coarse_proj"),
)
_PROTOTYPES = (("fr_{stream}", "fine"), ("fr_coarse_{stream}", "coarse"))

RULES: tuple[Rule, ...] = (
    *(
        rule
        for stream in _STREAMS
        for theirs, ours in _LAYERS
        for rule in dense(
            f"cls_head.{theirs.format(stream=stream)}", f"head/{ours.format(stream=stream)}"
        )
    ),
    *(
        Rule(
            (f"cls_head.{theirs.format(stream=stream)}.spatio_cl_net.avg_f",),
            f"prototypes/head/{stream}_{level}_prototype",
        )
        for stream in _STREAMS
        for theirs, level in _PROTOTYPES
    ),
)
HEADS = (r"head/(rgb|pose)(_coarse)?", r"head/(rgb|pose)_(fine|coarse)_prototype")
# The original keeps these outside its state dict and loses them on reload.
OPTIONAL = (r"prototypes/head/(rgb|pose)_coarse_prototype",)
