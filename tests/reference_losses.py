"""Every loss again, in numpy, from the papers' formulas: plain loops over samples and classes, no kdkit, no torch.

All functions also take complex arrays, so that `gradient` can differentiate them by the complex step, which is exact to
rounding: f(x + ih).imag / h. Hence comparisons use real parts, and norms are sqrt(sum x^2) without conjugates.
Dimensions: B batch, C classes, D width, H W height and width, N tokens.
"""

import numpy as np


def gradient(f, x, h=1e-30):
    """df/dx of the scalar f at the real array x, in extended precision: slopes at a confident row cancel to 1e-13."""
    slopes = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        stepped = x.astype(np.clongdouble)
        stepped[i] += 1j * h
        slopes[i] = np.imag(f(stepped)) / h
    return slopes


def log_softmax(z):
    shifted = z - z.real.max()
    return shifted - np.log(np.exp(shifted).sum())


def log_sum_exp(z):
    top = z.real.max()
    return top + np.log(np.exp(z - top).sum())


def divergence(log_p, log_q):
    return sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def entropy(z_t, temperature):
    return np.mean([-(np.exp(r) * r).sum() for r in (log_softmax(t / temperature) for t in z_t)])


def mean(terms):
    terms = list(terms)
    return sum(terms) / len(terms)


def kl(z_s, z_t, temperature=1.0):
    rows = zip(z_s, z_t, strict=True)
    return temperature**2 * mean(
        divergence(log_softmax(t / temperature), log_softmax(s / temperature)) for s, t in rows
    )


def soft_ce(z_s, z_t, temperature=1.0):
    rows = zip(z_s, z_t, strict=True)
    terms = (-(np.exp(log_softmax(t / temperature)) * log_softmax(s / temperature)).sum() for s, t in rows)
    return temperature**2 * mean(terms)


def reverse_kl(z_s, z_t, temperature=1.0):
    return kl(z_t, z_s, temperature)


def js(z_s, z_t, beta=0.5, temperature=1.0):
    def one(log_s, log_t):
        log_m = [
            log_sum_exp(np.array([b + np.log(beta), a + np.log(1 - beta)])) for a, b in zip(log_s, log_t, strict=True)
        ]
        return beta * divergence(log_t, log_m) + (1 - beta) * divergence(log_s, log_m)

    rows = zip(z_s / temperature, z_t / temperature, strict=True)
    return temperature**2 * mean(one(log_softmax(s), log_softmax(t)) for s, t in rows)


def logit_mse(z_s, z_t):
    rows = zip(z_s, z_t, strict=True)
    return mean((((s - s.mean()) - (t - t.mean())) ** 2).sum() / len(s) for s, t in rows)


def mlkd(z_s, z_t, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0), alpha=1.0, beta=1.0, gamma=1.0):
    def gram(rows):
        return np.array([[(a * b).sum() for b in rows] for a in rows])

    total = 0
    for temperature in temperatures:
        p_s, p_t = (np.array([np.exp(log_softmax(r / temperature)) for r in z]) for z in (z_s, z_t))
        of_batch = ((gram(p_s) - gram(p_t)) ** 2).sum() / len(z_s)
        of_classes = ((gram(p_s.T) - gram(p_t.T)) ** 2).sum() / z_s.shape[1]
        total = total + alpha * kl(z_s, z_t, temperature) + beta * of_batch + gamma * of_classes
    return total


def deit_soft(z_s, z_t, temperature=1.0):
    total = 0
    for s, t in zip(z_s, z_t, strict=True):
        total = total + divergence(log_softmax(t / temperature), log_softmax(s / temperature))
    return total * temperature**2 / z_s.size


def bce(z_s, z_t):
    def softplus(x):  # log(1 + e^x)
        return log_sum_exp(np.array([0, x]))

    terms = []
    for s, t in zip(z_s, z_t, strict=True):
        for z, p in zip(s, np.exp(log_softmax(t)), strict=True):
            terms.append(p * softplus(-z) + (1 - p) * softplus(z))
    return mean(terms)


def hard(z_s, z_t):
    return mean(-log_softmax(s)[int(np.argmax(t))] for s, t in zip(z_s, z_t, strict=True))


def _binary(z, y):
    """log p[y] and log(1 - p[y]); the second as the logsumexp of all others, not from a rounded p[y]."""
    return log_softmax(z)[y], log_sum_exp(np.delete(z, y)) - log_sum_exp(z)


def tckd(s, t, y):
    return divergence(_binary(t, y), _binary(s, y))


def nckd(s, t, y):
    return divergence(log_softmax(np.delete(t, y)), log_softmax(np.delete(s, y)))


def dkd(z_s, z_t, labels, alpha=1.0, beta=8.0, temperature=4.0):
    def one(s, t, y):
        return alpha * tckd(s / temperature, t / temperature, y) + beta * nckd(s / temperature, t / temperature, y)

    return temperature**2 * _over_labels(one, z_s, z_t, labels)


def nkd(z_s, z_t, labels, gamma=1.5, temperature=1.0):
    def one(s, t, y):
        of_target = -np.exp(log_softmax(t)[y]) * log_softmax(s)[y]
        q_t = np.exp(log_softmax(np.delete(t, y) / temperature))
        of_others = -(q_t * log_softmax(np.delete(s, y) / temperature)).sum()
        return of_target + gamma * temperature**2 * of_others

    return _over_labels(one, z_s, z_t, labels)


def ofa(z_s, z_t, labels, eps=1.0, temperature=1.0):
    def one(s, t, y):
        is_target = np.arange(len(s)) == y
        p_t = np.exp(log_softmax(t / temperature))
        return -(((p_t + is_target) ** eps - is_target) * log_softmax(s / temperature)).sum()

    return _over_labels(one, z_s, z_t, labels)


def _over_labels(one, z_s, z_t, labels):
    """Batch mean of one(s, t, y) for labels [B], or of its mean over y under soft labels [B, C]."""
    terms = []
    for s, t, label in zip(z_s, z_t, labels, strict=True):
        if np.ndim(label) == 0:
            terms.append(one(s, t, label))
        else:
            terms.append(sum(w * one(s, t, y) for y, w in enumerate(label) if w) / sum(label))
    return mean(terms)


def pearson(u, v, eps=0.0):
    """0 where either side is constant."""
    u, v = u - u.mean(), v - v.mean()
    if np.ptp(u.real) <= 1e-14 * (eps == 0) or np.ptp(v.real) <= 1e-14 * (eps == 0):
        return 0.0
    return (u * v).sum() / (np.sqrt((u * u).sum()) * np.sqrt((v * v).sum()) + eps)


def dist(z_s, z_t, beta=1.0, gamma=1.0, temperature=1.0, eps=1e-8):
    log_s = np.array([log_softmax(s / temperature) for s in z_s])
    log_t = np.array([log_softmax(t / temperature) for t in z_t])
    inter = 1 - mean(pearson(np.exp(s), np.exp(t), eps) for s, t in zip(log_s, log_t, strict=True))
    # Without eps a correlation is free of scale: a largest probability of 1 keeps the rarest class from underflow.
    tops = [(s.real.max(), t.max()) if eps == 0 else (0, 0) for s, t in zip(log_s.T, log_t.T, strict=True)]
    columns = zip(log_s.T, log_t.T, tops, strict=True)
    intra = 1 - mean(pearson(np.exp(s - a), np.exp(t - b), eps) for s, t, (a, b) in columns)
    return temperature**2 * (beta * inter + gamma * intra)


def ttm(z_s, z_t, power=0.1):
    return mean(_ttm_row(s, t, power)[0] for s, t in zip(z_s, z_t, strict=True))


def wttm(z_s, z_t, power=0.1):
    return mean(np.prod(_ttm_row(s, t, power)) for s, t in zip(z_s, z_t, strict=True))


def _ttm_row(s, t, power):
    powered = np.exp(log_softmax(t)) ** power
    w = powered / powered.sum()
    terms = [a * (np.log(a) - b) for a, b in zip(w, log_softmax(s), strict=True) if a > 0]
    return sum(terms), powered.sum()


def standardize(z):
    return np.array([(r - r.mean()) / (1e-7 + np.sqrt(((r - r.mean()) ** 2).sum() / (len(r) - 1))) for r in z])


def hint_mse(f_s, f_t):
    return ((f_s - f_t) ** 2).mean()


def hint_cosine(f_s, f_t):
    width = 2 if f_s.ndim == 3 else 1
    f_s, f_t = np.moveaxis(f_s, width, -1), np.moveaxis(f_t, width, -1)
    norms = np.sqrt((f_s * f_s).sum(-1) * (f_t * f_t).sum(-1))
    return (1 - (f_s * f_t).sum(-1) / norms).mean()


def attention(f_s, f_t):
    def normalised_map(f):
        energy = (f * f).mean(2 if f.ndim == 3 else 1).reshape(-1)
        return energy / np.sqrt((energy * energy).sum())

    return mean(
        ((normalised_map(s[None]) - normalised_map(t[None])) ** 2).mean() for s, t in zip(f_s, f_t, strict=True)
    )


def _rows(f):
    return f.reshape(len(f), -1)


def similarity(f_s, f_t):
    def gram(f):
        return np.array([[(a * b).sum() for b in _rows(f)] for a in _rows(f)])

    total = 0
    for g_s, g_t in zip(gram(f_s), gram(f_t), strict=True):
        total = total + ((g_s / np.sqrt((g_s * g_s).sum()) - g_t / np.sqrt((g_t * g_t).sum())) ** 2).sum()
    return total / len(f_s) ** 2


def pkt(f_s, f_t):
    def conditional(f):
        rows = [r / np.sqrt((r * r).sum()) for r in _rows(f)]
        kernel = np.array([[((a * b).sum() + 1) / 2 for b in rows] for a in rows])
        return kernel / kernel.sum(1, keepdims=True)

    p_s, p_t = conditional(f_s), conditional(f_t)
    return (p_t * np.log(p_t / p_s)).mean()


def smooth_l1(a, b):
    d = a - b
    return d * d / 2 if abs(d.real) < 1 else d * np.sign(d.real) - 0.5


def _length(v):
    return np.sqrt((v * v).sum()) if np.any(v.real) else 0.0


def rkd_distance(f_s, f_t):
    def relative(f):
        d = np.array([[_length(a - b) for b in _rows(f)] for a in _rows(f)])
        positive = [x for x in d.ravel() if x.real > 0]
        return d / mean(positive) if positive else d

    return mean(smooth_l1(a, b) for a, b in zip(relative(f_s).ravel(), relative(f_t).ravel(), strict=True))


def rkd_angle(f_s, f_t):
    def cosines(f):
        rows, out = _rows(f), []
        for vertex in rows:
            edges = [r - vertex for r in rows]
            units = [e / _length(e) if np.any(e.real) else 0 * e.real for e in edges]
            out += [(a * b).sum() for a in units for b in units]
        return out

    return mean(smooth_l1(np.asarray(a), np.asarray(b)) for a, b in zip(cosines(f_s), cosines(f_t), strict=True))


def pool(f, level):
    """Adaptive mean pooling of [B, D, H, W] to level x level."""

    def bins(n):
        return [slice(i * n // level, -(-(i + 1) * n // level)) for i in range(level)]

    return np.array(
        [[[[m[r, c].mean() for c in bins(m.shape[1])] for r in bins(m.shape[0])] for m in sample] for sample in f]
    )


def review(features_s, features_t):
    total = 0
    for f_s, f_t in zip(features_s, features_t, strict=True):
        terms, weights = [hint_mse(f_s, f_t)], [1.0]
        for level in (4, 2, 1):
            if level < f_s.shape[2]:
                terms.append(hint_mse(pool(f_s, level), pool(f_t, level)))
                weights.append(weights[-1] / 2)
        total = total + sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights)
    return total


def conv(x, weight, bias=None):
    """Convolution of [B, D, H, W] with an odd kernel [E, D, k, k], zero padding, stride 1."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]), dtype=x.dtype)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[:, :, i, j] = np.tensordot(padded[:, :, i : i + k, j : j + k], weight, axes=([1, 2, 3], [1, 2, 3]))
    return out if bias is None else out + bias[None, :, None, None]


def batch_norm(x, weight, bias, eps=1e-5):
    centre = x.mean((0, 2, 3), keepdims=True)
    variance = ((x - centre) ** 2).mean((0, 2, 3), keepdims=True)
    return (x - centre) / np.sqrt(variance + eps) * weight[None, :, None, None] + bias[None, :, None, None]


def nearest(x, size):
    rows = [i * x.shape[2] // size[0] for i in range(size[0])]
    columns = [j * x.shape[3] // size[1] for j in range(size[1])]
    return x[:, :, rows][:, :, :, columns]


def review_fuse(features_s, sizes, stages):
    """ReviewKD's fusion; `stages` hold each stage's parameters by name, shallow to deep."""
    fused, deeper = [], None
    for f, size, p in reversed(list(zip(features_s, sizes, stages, strict=True))):
        mixed = batch_norm(conv(f, p["enter.weight"]), p["enter_norm.weight"], p["enter_norm.bias"])
        if deeper is not None:
            deeper = nearest(deeper, mixed.shape[2:])
            both = np.concatenate([mixed, deeper], 1)
            gate = 1 / (1 + np.exp(-conv(both, p["attention.weight"], p["attention.bias"])))
            mixed = mixed * gate[:, :1] + deeper * gate[:, 1:]
        deeper = nearest(mixed, size)
        out = batch_norm(conv(deeper, p["leave.weight"]), p["leave_norm.weight"], p["leave_norm.bias"])
        fused.insert(0, out)
    return fused


def vitkd(low_s, low_t, high_s, high_t, mask, p, alpha=3e-5, beta=3e-6):
    """`p` holds the parameters of kdkit's module by name."""
    batch, tokens, _ = high_s.shape
    side = round(tokens**0.5)
    mimic = 0
    for i, (s, t) in enumerate(zip(low_s, low_t, strict=True)):
        projected = s @ p[f"low_projections.{i}.linear.weight"].T + p[f"low_projections.{i}.linear.bias"]
        mimic = mimic + ((projected - t) ** 2).sum()
    x = high_s @ p["high_projection.linear.weight"].T + p["high_projection.linear.bias"]
    x = np.where(mask[:, :, None] > 0, p["mask_token"], x).reshape(batch, side, side, -1).transpose(0, 3, 1, 2)
    x = conv(x, p["generation.0.weight"], p["generation.0.bias"])
    x = conv(x * (x.real > 0), p["generation.2.weight"], p["generation.2.bias"])
    x = x.transpose(0, 2, 3, 1).reshape(batch, tokens, -1)
    generated = (((x - high_t) ** 2) * mask[:, :, None]).sum()
    return alpha * mimic / batch + beta * generated / batch / mask.mean()


def mgd(f_s, f_t, mask, p, alpha=7e-5):
    """`p` holds the parameters of kdkit's module by name."""
    x = conv(f_s, p["projection.linear.weight"][:, :, None, None], p["projection.linear.bias"]) * (1 - mask)
    x = conv(x, p["generation.0.weight"], p["generation.0.bias"])
    x = conv(x * (x.real > 0), p["generation.2.weight"], p["generation.2.bias"])
    return alpha * ((x - f_t) ** 2).sum() / len(f_s)


def srrl(f_s, f_t, head, p):
    """`p` holds the parameters of kdkit's module by name."""
    x = batch_norm(conv(f_s, p["connect.weight"]), p["norm.weight"], p["norm.bias"])
    difference = (x * (x.real > 0)).mean((2, 3)) - f_t
    return (difference**2).mean() + ((difference @ head.T) ** 2).mean()


def crd(f_s, f_t, memory_s, memory_t, index, log_z, p, temperature=0.07):
    """`p` holds the parameters of kdkit's module by name."""
    total = 0
    for side, f, memory, log_of_side in (("student", f_s, memory_t, log_z[0]), ("teacher", f_t, memory_s, log_z[1])):
        v = f @ p[f"{side}_embedding.weight"].T + p[f"{side}_embedding.bias"]
        v = v / ((v**2).sum(axis=1, keepdims=True)) ** 0.5
        c = (index.shape[1] - 1) / len(memory)
        for one, places in zip(v, index, strict=True):
            q = np.exp(memory[places] @ one / temperature - log_of_side)
            total = total - np.log(q[0] / (q[0] + c)) - np.log(c / (q[1:] + c)).sum()
    return total / len(f_s)


def ofa_exits(features, z_t, labels, p, **options):
    """`p` holds the parameters of kdkit's module by name."""
    total = 0
    for number, f in enumerate(features):
        pooled = f if f.ndim == 2 else f.mean(axis=(1,) if f.ndim == 3 else (2, 3))
        logits = pooled @ p[f"exits.{number}.weight"].T + p[f"exits.{number}.bias"]
        total = total + ofa(logits, z_t, labels, **options)
    return total
