"""`padding_is_inert` finds the mistakes of well-known recurrent models, which are written here after their papers.

The models are small, and treat padded batches like the code of the papers or like the most common implementation.
"""

import re
from typing import Any

import pytest

from unirnn.testing.batches import Batch, batch
from unirnn.testing.inert import padding_is_inert

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = batch(features=4, min_length=4, steps=8, batch_size=3)
TOKENS = batch(num_tokens=9, min_length=1, steps=6, batch_size=3)


def packed(rnn: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
    """Run a layer over packed sequences, and pad its output again."""
    output, state = rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0], state


def valid_steps(x: Any, lengths: Any) -> Any:
    return torch.arange(x.shape[1]) < lengths[:, None]


class CRNN(nn.Module):
    """Shi, Bai and Yao 2015: reads text in images that are padded to the same width, and takes no widths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, (1, 2)),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )
        self.rnn = nn.LSTM(4, 4, num_layers=2, bidirectional=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        features: Tensor = self.conv(x[:, None]).squeeze(3)  # `(B, C, T')`
        return self.head(self.rnn(features.permute(2, 0, 1))[0]).log_softmax(-1)


class DeepSpeech2(nn.Module):
    """Amodei et al. 2016, as in deepspeech.pytorch: masks the output of each convolution; the batch normalisations
    between the recurrent layers run over all steps of the batch.
    """

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.conv = nn.ModuleList([nn.Conv1d(4, 5, 3, stride=2, padding=1), nn.BatchNorm1d(5), nn.Hardtanh(0, 20)])
        self.rnn = nn.GRU(5, 4, bidirectional=True, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        lengths = (lengths + 1) // 2
        x = x.transpose(1, 2)
        for layer in self.conv:
            x = layer(x)
            if self.masked:
                x = x.masked_fill(~valid_steps(x.transpose(1, 2), lengths)[:, None], 0)
        y, _ = packed(self.rnn, x.transpose(1, 2), lengths)
        y = self.norm(y.reshape(-1, 8)).reshape(y.shape)
        return self.head(y).log_softmax(-1), lengths


class Bahdanau(nn.Module):
    """Bahdanau, Cho and Bengio 2015, as in most tutorials: additive attention over the states of a bidirectional
    encoder. The encoder is not packed, and the attention is not masked. The decoder runs for two steps.
    """

    def __init__(self, right: bool = False) -> None:
        super().__init__()
        self.right = right
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.GRU(4, 4, bidirectional=True, batch_first=True)
        self.query, self.key, self.energy = nn.Linear(4, 4), nn.Linear(8, 4), nn.Linear(4, 1)
        self.cell = nn.GRUCell(8, 4)
        self.head = nn.Linear(4, 9)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Any:
        x = self.embedding(tokens)
        keys, state = packed(self.encoder, x, lengths) if self.right else self.encoder(x)
        state, logits, weights = state[1], [], []
        for _ in range(2):
            energy = self.energy(torch.tanh(self.query(state)[:, None] + self.key(keys)))[..., 0]
            if self.right:
                energy = energy.masked_fill(~valid_steps(keys, lengths), -torch.inf)
            weights.append(energy.softmax(-1))
            state = self.cell((weights[-1][..., None] * keys).sum(1), state)
            logits.append(self.head(state))
        return torch.stack(logits, 1), torch.stack(weights, 1)


class BiLSTMCRF(nn.Module):
    """Huang, Xu and Yu 2015; Lample et al. 2016: the partition function is masked, but the encoder is not packed."""

    def __init__(self, right: bool = False) -> None:
        super().__init__()
        self.right = right
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.encoder = nn.LSTM(4, 4, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.transitions = nn.Parameter(torch.randn(3, 3))

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        x = self.embedding(tokens)
        y = packed(self.encoder, x, mask.sum(1))[0] if self.right else self.encoder(x)[0]
        emissions = self.head(y)
        score = emissions[:, 0]
        for t in range(1, tokens.shape[1]):
            following = (score[:, :, None] + self.transitions + emissions[:, t, None]).logsumexp(1)
            score = torch.where(mask[:, t, None], following, score)
        return score.logsumexp(1)


class InferSent(nn.Module):
    """Conneau et al. 2017: a packed encoder, then the maximum over the steps. In the first published code, the maximum
    includes the zeros of the padding; later code replaces zeros by -1e9.
    """

    def __init__(self, later: bool) -> None:
        super().__init__()
        self.later = later
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.LSTM(4, 4, bidirectional=True, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Any:
        y, _ = packed(self.encoder, self.embedding(tokens), lengths)
        if self.later:
            y = torch.where(y == 0, -1e9, y)
        return y.amax(1)


class ELMo(nn.Module):
    """Peters et al. 2018: a language model in each direction. It is tempting to run the second one over the flipped
    batch, but it is right to reverse each sequence by its length.
    """

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right
        self.embedding = nn.Embedding(9, 4)
        self.forwards, self.backwards = nn.LSTM(4, 4, batch_first=True), nn.LSTM(4, 4, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Any:
        x = self.embedding(tokens)
        steps = torch.arange(x.shape[1]).expand(len(x), -1)
        order = (
            torch.where(valid_steps(x, lengths), lengths[:, None] - 1 - steps, steps) if self.right else steps.flip(1)
        )
        order = order[..., None].expand(-1, -1, 4)
        reverse = self.backwards(x.gather(1, order))[0].gather(1, order)
        return torch.cat([self.forwards(x)[0], reverse], -1)


class Tacotron2Encoder(nn.Module):
    """Shen et al. 2018: convolutions with batch normalisation over padded characters, then a packed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.conv = nn.Sequential(nn.Conv1d(4, 4, 5, padding=2), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
        self.rnn = nn.LSTM(4, 4, bidirectional=True, batch_first=True)

    def forward(self, tokens: Tensor, input_lengths: Tensor) -> Any:
        x = self.conv(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        return packed(self.rnn, x, input_lengths)[0]


class HAN(nn.Module):
    """Yang et al. 2016: attention over the states of the words in a sentence; the public code has no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.words = nn.GRU(4, 4, bidirectional=True, batch_first=True)
        self.project, self.context = nn.Linear(8, 4), nn.Linear(4, 1, bias=False)
        self.softmax = nn.Softmax(1)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Any:
        y, _ = packed(self.words, self.embedding(tokens), lengths)
        weights = self.softmax(self.context(torch.tanh(self.project(y))))
        return self.head((weights * y).sum(1))


class AWDLSTM(nn.Module):
    """Merity, Keskar and Socher 2018: a language model with locked dropout, which returns its states for the next
    batch. It reads forward only, so padding can reach the states, but not valid steps.
    """

    def __init__(self, with_states: bool) -> None:
        super().__init__()
        self.with_states = with_states
        self.encoder = nn.Embedding(9, 4)
        self.rnns = nn.ModuleList([nn.LSTM(4, 5, batch_first=True), nn.LSTM(5, 4, batch_first=True)])
        self.decoder = nn.Linear(4, 9)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, lengths: Tensor) -> Any:
        x, states = self.encoder(tokens), []
        for rnn in self.rnns:
            x, state = rnn(x)
            states.append(state)
            if self.training:
                x = x * torch.bernoulli(torch.full((len(x), 1, x.shape[-1]), 0.5)) / 0.5
        return (self.decoder(x), states) if self.with_states else self.decoder(x)


class DrQA(nn.Module):
    """Chen et al. 2017: stacked layers, whose outputs are concatenated. In training, DrQA's reader by default uses
    faster code that ignores the padding. Here it does so in both modes.
    """

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.rnns = nn.ModuleList([nn.LSTM(size, 3, bidirectional=True, batch_first=True) for size in (4, 6)])

    def forward(self, tokens: Tensor, lengths: Tensor) -> Any:
        outputs = [self.embedding(tokens)]
        for rnn in self.rnns:
            outputs.append(packed(rnn, outputs[-1], lengths)[0] if self.right else rnn(outputs[-1])[0])
        return torch.cat(outputs[1:], 2)


class TextRCNN(nn.Module):
    """Lai et al. 2015: concatenates each word with the states on both sides, and takes the maximum over the text. It
    takes no lengths.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.rnn = nn.LSTM(4, 3, bidirectional=True, batch_first=True)
        self.project, self.head = nn.Linear(10, 5), nn.Linear(5, 2)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embedding(tokens)
        y = torch.tanh(self.project(torch.cat([self.rnn(x)[0], x], -1)))
        return self.head(y.amax(1))


class GRU4Rec(nn.Module):
    """Hidasi et al. 2016: predicts the next item of a session from the state after the last item, which is taken from
    the final state of the layer, or from the output at step n - 1.
    """

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 9)

    def forward(self, items: Tensor, lengths: Tensor) -> Any:
        y, state = self.gru(self.embedding(items))
        return self.head(y[torch.arange(len(y)), lengths - 1] if self.right else state[-1])


class Seq2Vec(nn.Module):
    """Gardner et al. 2018 (AllenNLP's PytorchSeq2VecWrapper): sorts the batch by length, packs it, and restores the
    order of the final states.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.rnn = nn.LSTM(4, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        lengths, order = mask.sum(1).sort(descending=True)
        x = pack_padded_sequence(self.embedding(tokens)[order], lengths, batch_first=True)
        state: Tensor = self.rnn(x)[1][0]
        return state.view(2, 2, -1, 4)[-1].transpose(0, 1).flatten(1)[order.argsort()]


class GE2E(nn.Module):
    """Wan et al. 2018: describes a speaker's voice by the normalised final state, and takes no lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=3, batch_first=True)
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        voice: Tensor = self.project(self.lstm(x)[1][0][-1]).relu()
        return voice / (voice.norm(dim=1, keepdim=True) + 1e-5)


class Listener(nn.Module):
    """Chan et al. 2016 (Listen, Attend and Spell): each layer of the pyramid reads pairs of steps. The usual code
    rounds odd lengths up, so that the last pair includes a step of padding.
    """

    def __init__(self, down: bool) -> None:
        super().__init__()
        self.down = down
        self.rnn = nn.LSTM(8, 4, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        x = x[:, : x.shape[1] // 2 * 2] if self.down else nn.functional.pad(x, (0, 0, 0, x.shape[1] % 2))
        lengths = (lengths if self.down else lengths + 1) // 2
        return packed(self.rnn, x.reshape(len(x), -1, 8), lengths)[0], lengths


def without_lengths(model: Any, x: Any, lengths: Any) -> Any:
    return model(x)


NOT_PACKED = "its reverse direction begins in the padding"
OF_STEP_T = "its final state is that of step T"
WINDOW = "its window reaches from a valid step into the padding"

FOUND: dict[str, tuple[Any, Batch, list[str]]] = {
    "CRNN": (CRNN, FRAMES, [r"in evaluation", r"in training", r"conv\.0 \(Conv2d\)", WINDOW]),
    "DeepSpeech 2": (lambda: DeepSpeech2(False), FRAMES, [r"conv\.0 \(Conv1d\)", WINDOW, r"norm\.running_mean"]),
    "DeepSpeech 2, MaskConv": (lambda: DeepSpeech2(True), FRAMES, [r"conv\.0 \(Conv1d\)", WINDOW]),
    "Bahdanau": (Bahdanau, TOKENS, [r"output\[1\]", r"encoder \(GRU\)", NOT_PACKED]),
    "BiLSTM-CRF": (BiLSTMCRF, TOKENS, [r"encoder \(LSTM\)", NOT_PACKED]),
    "InferSent, first": (
        lambda: InferSent(False),
        TOKENS,
        ["alone", "own code, after encoder .LSTM., reads the padding"],
    ),
    "ELMo, flipped": (lambda: ELMo(False), TOKENS, [r"backwards \(LSTM\)", "reversed together with its padding"]),
    "Tacotron 2": (Tacotron2Encoder, TOKENS, [r"conv\.0 \(Conv1d\)", WINDOW, r"conv\.1\.running_var after training"]),
    "HAN": (HAN, TOKENS, [r"softmax \(Softmax\)", "its softmax runs over all T steps: the padding is not masked"]),
    "AWD-LSTM, states": (lambda: AWDLSTM(True), TOKENS, [r"output\[1\]\[0\]\[0\]", r"rnns\.0 \(LSTM\)", OF_STEP_T]),
    "DrQA": (lambda: DrQA(False), TOKENS, [r"rnns\.0 \(LSTM\)", NOT_PACKED]),
    "TextRCNN": (TextRCNN, TOKENS, [r"rnn \(LSTM\)", NOT_PACKED]),
    "GRU4Rec, final state": (lambda: GRU4Rec(False), TOKENS, [r"gru \(GRU\)", OF_STEP_T]),
    "GE2E": (GE2E, FRAMES, [r"lstm \(LSTM\)", OF_STEP_T]),
    "Listener, up": (lambda: Listener(False), FRAMES, [r"rnn \(LSTM\)", "or computes a valid step from it"]),
}
INERT: dict[str, tuple[Any, Batch]] = {
    "Bahdanau, packed and masked": (lambda: Bahdanau(True), TOKENS),
    "BiLSTM-CRF, packed": (lambda: BiLSTMCRF(True), TOKENS),
    "InferSent, later": (lambda: InferSent(True), TOKENS),
    "ELMo, by length": (lambda: ELMo(True), TOKENS),
    "AWD-LSTM": (lambda: AWDLSTM(False), TOKENS),
    "DrQA, packed": (lambda: DrQA(True), TOKENS),
    "GRU4Rec, step n - 1": (lambda: GRU4Rec(True), TOKENS),
    "Seq2Vec": (Seq2Vec, TOKENS),
    "Listener, down": (lambda: Listener(True), FRAMES),
}


def made(make: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = make()
    return model, {"call": without_lengths} if isinstance(model, (CRNN, TextRCNN, GE2E)) else {}


@pytest.mark.parametrize(("make", "given", "words"), FOUND.values(), ids=FOUND.keys())
def test_the_mistakes_of_a_model_are_found(make: Any, given: Batch, words: list[str]) -> None:
    model, arguments = made(make)
    with pytest.raises(AssertionError) as raised:
        padding_is_inert(model, given, **arguments)
    for pattern in words:
        assert re.search(pattern, str(raised.value)), f"{pattern}\n{raised.value}"


@pytest.mark.parametrize(("make", "given"), INERT.values(), ids=INERT.keys())
def test_models_without_mistakes_pass(make: Any, given: Batch) -> None:
    model, arguments = made(make)
    padding_is_inert(model, given, **arguments)
