"""Plain PyTorch models of sequences: recurrences, scans, convolutions in time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrizations

from .family import Family

VOCAB = 96
WIDTH = 48
#: Without it Dynamo skips the frame that calls an ``nn.LSTM`` or ``nn.GRU``.
RNN = {"allow_rnn": True}


def text(length: int = 10, batch: int = 2) -> Any:
    return lambda rng: (torch.randint(1, VOCAB, (batch, length), generator=rng),)


def signal(length: int, channels: int) -> Any:
    return lambda rng: (torch.randn(2, channels, length, generator=rng),)


class BidirectionalGRU(nn.Module):
    """Two layers of GRU, both ways, and a pool by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
        self.score, self.head = nn.Linear(2 * WIDTH, 1), nn.Linear(2 * WIDTH, 7)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(self.embed(tokens))
        return self.head((self.score(states).softmax(1) * states).sum(1)), last


class TanhRNN(nn.Module):
    """A plain recurrent network whose projection is a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCAB, WIDTH), nn.RNN(WIDTH, WIDTH, num_layers=2, nonlinearity="tanh")
        self.head = parametrizations.orthogonal(nn.Linear(WIDTH, 7))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens).transpose(0, 1))[0])


class Translator(nn.Module):
    """Cells in Python loops: an encoder, and a decoder that looks back at it each step and feeds on its own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(VOCAB, WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.decoder, self.query = nn.GRUCell(2 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(2 * WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = c = x.new_zeros(x.shape[0], WIDTH)
        memory = []
        for step in x.unbind(1):
            h, c = self.encoder(step, (h, c))
            memory.append(h)
        seen, word, results = torch.stack(memory, dim=1), x[:, 0], []
        for _ in range(4):
            weights = torch.einsum("bd,btd->bt", self.query(h), seen).softmax(-1)
            context = torch.einsum("bt,btd->bd", weights, seen)
            h = self.decoder(torch.cat([word, context], dim=-1), h)
            logits = self.head(torch.cat([h, context], dim=-1))
            word = logits.softmax(-1) @ self.embed.weight
            results.append(logits)
        return torch.stack(results, dim=1)


class ConvLSTM(nn.Module):
    """A recurrence over frames whose gates are convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.gates, self.head = width, nn.Conv2d(3 + width, 4 * width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        b, t, _, h, w = frames.shape
        state = cell = frames.new_zeros(b, self.width, h, w)
        seen = frames.new_empty(b, t, 1, h, w)
        for i in range(t):
            i_, f, o, g = self.gates(torch.cat([frames[:, i], state], dim=1)).chunk(4, dim=1)
            cell = f.sigmoid() * cell + i_.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
            seen[:, i] = self.head(state)
        return seen


class DilatedConvolutions(nn.Module):
    """Causal dilated convolutions with weight norm and gates, as WaveNet has them."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, width, 1)
        self.convs = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(width, 2 * width, 2, dilation=2**i)) for i in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(4))
        self.head = nn.Conv1d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for i, (conv, skip) in enumerate(zip(self.convs, self.skips, strict=True)):
            value, gate = conv(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            y = skip(value.tanh() * gate.sigmoid())
            x, total = x + y, total + y
        return self.head(F.relu(total))


class StateSpace(nn.Module):
    """Diagonal state spaces as long convolutions by FFT, and the same as a recurrence in the last layer."""

    def __init__(self, width: int = 32, states: int = 8) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(4, width), nn.Linear(width, 5)
        self.decay = nn.Parameter(torch.rand(3, width, states) + 0.1)
        self.turn = nn.Parameter(torch.randn(3, width, states))
        self.read = nn.Parameter(torch.randn(3, width, states, 2) / states)
        self.mix = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.transpose(1, 2))
        length = x.shape[1]
        steps = torch.arange(length, device=x.device)
        for layer, mix in enumerate(self.mix):
            pole = torch.complex(-self.decay[layer], self.turn[layer])
            read = torch.view_as_complex(self.read[layer])
            if layer < 2:
                kernel = torch.einsum("cs,cst->ct", read, torch.exp(pole[..., None] * steps)).real
                spectrum = torch.fft.rfft(x, n=2 * length, dim=1) * torch.fft.rfft(kernel.T, n=2 * length, dim=0)
                y = torch.fft.irfft(spectrum, n=2 * length, dim=1)[:, :length]
            else:
                state, seen = torch.zeros_like(x[:, 0, :, None] * pole), []
                for t in range(length):
                    state = state * pole.exp() + x[:, t, :, None]
                    seen.append((state * read).sum(-1).real)
                y = torch.stack(seen, dim=1)
            value, gate = mix(y).chunk(2, dim=-1)
            x = x + value * gate.sigmoid()
        return self.head(x)


class LinearAttention(nn.Module):
    """Gated linear attention as a recurrence whose state is a matrix, written in place."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.embed = heads, nn.Embedding(VOCAB, WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.gate = nn.ModuleList(nn.Linear(WIDTH, heads) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        b, t, d = x.shape
        for qkv, gate in zip(self.qkv, self.gate, strict=True):
            q, k, v = qkv(x).view(b, t, 3, self.heads, -1).unbind(2)
            decay = gate(x).sigmoid()
            state = x.new_zeros(b, self.heads, d // self.heads, d // self.heads)
            rows = []
            for i in range(t):
                state.mul_(decay[:, i, :, None, None])
                state.add_(k[:, i, :, :, None] * v[:, i, :, None, :])
                rows.append((q[:, i, :, None] @ state).reshape(b, d))
            x = F.layer_norm(x + torch.stack(rows, dim=1), (d,))
        return self.head(x)


class Speech(nn.Module):
    """Convolutions and a GRU over a spectrogram that is made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))
        self.convs = nn.Sequential(
            nn.Conv1d(17, 32, 3, padding=1), nn.GELU(), nn.Conv1d(32, 32, 3, padding=1), nn.GELU())
        self.gru, self.head = nn.GRU(32, 32), nn.Linear(32, 11)

    def forward(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(samples, 32, 16, window=self.window, return_complex=True).abs()
        x = self.convs(spectrum.clamp_min(1e-4).log()).permute(2, 0, 1)
        return self.head(self.gru(x)[0]).log_softmax(-1)


class Tagger(nn.Module):
    """A convolutional tagger, the partition function and the best path of its conditional random field."""

    def __init__(self, tags: int = 6) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(VOCAB, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.emit, self.moves = nn.Linear(WIDTH, tags), nn.Parameter(torch.randn(tags, tags))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2))
        scores = self.emit(x)
        total = best = scores[:, 0]
        back = []
        for step in scores[:, 1:].unbind(1):
            total = torch.logsumexp(total[:, :, None] + self.moves, dim=1) + step
            best, where = (best[:, :, None] + self.moves).max(dim=1)
            best = best + step
            back.append(where)
        tag = best.argmax(-1)
        path = [tag]
        for where in reversed(back):
            tag = where.gather(1, tag[:, None])[:, 0]
            path.append(tag)
        return total.logsumexp(-1), torch.stack(path[::-1], dim=1)


class WordBags(nn.Module):
    """Bags of words of several lengths, as ``nn.EmbeddingBag`` takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.max = nn.EmbeddingBag(VOCAB, WIDTH, mode="sum"), nn.EmbeddingBag(VOCAB, WIDTH, mode="max")
        self.mean = nn.EmbeddingBag(VOCAB, WIDTH, mode="mean", padding_idx=0)
        self.body = nn.Sequential(nn.Linear(3 * WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Mish(), nn.Linear(WIDTH, 7))

    def forward(self, words: Tensor, starts: Tensor, shares: Tensor) -> Tensor:
        bags = [self.sum(words, starts, shares), self.max(words, starts), self.mean(words, starts)]
        return self.body(torch.cat(bags, dim=-1))


def bags(rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randint(VOCAB, (14,), generator=rng), torch.tensor([0, 4, 9]), torch.rand(14, generator=rng)


FAMILIES = [
    Family("gru_bidirectional", BidirectionalGRU, text(), settings=RNN, by_inductor=True,
           idle=(r"score\.bias",)),
    Family("rnn_tanh", TanhRNN, text(), settings=RNN),
    Family("translator_cells", Translator, text(6)),
    Family("conv_lstm", ConvLSTM, lambda rng: (torch.randn(2, 4, 3, 8, 8, generator=rng),)),
    Family("dilated_weight_norm", DilatedConvolutions, signal(24, 4)),
    Family("state_space", StateSpace, signal(12, 4)),
    Family("linear_attention", LinearAttention, text(8)),
    Family("speech_spectrogram", Speech, lambda rng: (torch.randn(2, 320, generator=rng),), settings=RNN),
    Family("tagger_crf", Tagger, text()),
    Family("word_bags", WordBags, bags),
]
