"""How much an operator matters to image classifiers, and what kind of operator it is."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


RANKS: dict[str, tuple[str, ...]] = {
    # What any convolutional network needs.
    "T0": _words(
        "Conv BatchNormalization Relu Add Sub Mul Div MaxPool AveragePool GlobalAveragePool Gemm "
        "MatMul Flatten Reshape Softmax LogSoftmax Concat Constant Identity Dropout Clip Sigmoid "
        "Transpose"
    ),
    # Mobile networks, shapes computed in the graph, operator sets from 18 on.
    "T1": _words(
        "Shape Gather Unsqueeze Squeeze Slice Cast ReduceMean ReduceSum ReduceMax ReduceMin "
        "HardSigmoid HardSwish LeakyRelu PRelu Elu Selu Tanh Exp Log Sqrt Pow Erf Neg Abs "
        "Reciprocal Min Max Sum Mean Pad GlobalMaxPool LRN ArgMax ArgMin Split Expand Where Equal "
        "Greater Less GreaterOrEqual LessOrEqual Not And Or Tile ConstantOfShape Range Floor Ceil "
        "Round Upsample Resize"
    ),
    # Transformers and newer operators.
    "T2": _words(
        "LayerNormalization InstanceNormalization GroupNormalization RMSNormalization Gelu Mish "
        "Softplus Softsign Swish Einsum Attention GatherElements GatherND ScatterND "
        "ScatterElements Trilu CumSum TopK OneHot Mod DepthToSpace SpaceToDepth ConvTranspose "
        "LpNormalization ReduceL2 Size CastLike Hardmax NonZero EyeLike Sin Cos"
    ),
    # Quantised files, and Sign, which binarised networks consist of.
    "T3": _words(
        "QuantizeLinear DequantizeLinear QLinearConv QLinearMatMul DynamicQuantizeLinear "
        "ConvInteger MatMulInteger Sign"
    ),
    # Control flow, and the sequences that exporters write for chunk, split and unbind.
    "T4": _words(
        "If Loop Scan SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceAt "
        "SequenceLength SplitToSequence ConcatFromSequence SequenceMap"
    ),
}
"""The ranked list of what classifiers were found to consist of."""

NO_RANK = "none"

GROUPS: dict[str, tuple[str, ...]] = {
    "conv, pool, norm": _words(
        "Conv ConvTranspose DeformConv Col2Im MaxPool AveragePool LpPool GlobalAveragePool "
        "GlobalMaxPool GlobalLpPool MaxUnpool BatchNormalization InstanceNormalization "
        "GroupNormalization LayerNormalization RMSNormalization LpNormalization LRN Dropout "
        "MeanVarianceNormalization"
    ),
    "dense, activation": _words(
        "Gemm MatMul Einsum Attention RotaryEmbedding Relu LeakyRelu PRelu Elu Celu Selu "
        "ThresholdedRelu Shrink Sigmoid HardSigmoid HardSwish Swish Mish Gelu Softplus Softsign "
        "Softmax LogSoftmax Hardmax Tanh Clip NegativeLogLikelihoodLoss "
        "SoftmaxCrossEntropyLoss LinearAttention FlexAttention SwiGLU"
    ),
    "arithmetic": _words(
        "Add Sub Mul Div Pow Mod Sum Mean Max Min Abs Neg Sign Reciprocal Sqrt Exp Log Erf Floor "
        "Ceil Round Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh IsNaN IsInf Equal "
        "Greater GreaterOrEqual Less LessOrEqual And Or Not Xor BitwiseAnd BitwiseOr BitwiseXor "
        "BitwiseNot BitShift Where Det"
    ),
    "shape, index": _words(
        "Reshape Flatten Transpose Squeeze Unsqueeze Concat Split Expand Tile Shape Size Slice Pad "
        "Gather GatherElements GatherND Scatter ScatterElements ScatterND TensorScatter OneHot "
        "NonZero Trilu EyeLike Range Constant ConstantOfShape Identity Cast CastLike BitCast "
        "DepthToSpace SpaceToDepth Compress ReverseSequence Unique CenterCropPad"
    ),
    "reduce, arg": _words(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare ArgMax ArgMin TopK CumSum CumProd"
    ),
    "resize, sample": _words("Resize Upsample GridSample AffineGrid RoiAlign MaxRoiPool"),
    "quantised": _words(
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul "
        "ConvInteger MatMulInteger"
    ),
    "control, recurrent": ("If", "Loop", "Scan", "RNN", "GRU", "LSTM"),
}
REST = "rest"


def rank(operator: str) -> str:
    """The operator's rank, T0 to T4, or none."""
    return _key(RANKS, operator, NO_RANK)


def group(operator: str) -> str:
    """The operator's group."""
    return _key(GROUPS, operator, REST)


def _key(table: dict[str, tuple[str, ...]], operator: str, default: str) -> str:
    return next((key for key, operators in table.items() if operator in operators), default)
