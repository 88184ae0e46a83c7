"""Wrong answers to the exercises that ask for code, and what `check` must say to each.

They are likely mistakes, not nonsense. Notebook → (how the exercise's cell begins, a wrong answer
in place of the `...`, a pattern of the verdict).
"""

WRONG = {
    "00": [
        ("def first_order", """
def first_order(ntk, i, epsilon):
    return epsilon * ntk[i, i]
""", r"expected shape \(100,\), got \(\)"),
        ("def first_order", """
def first_order(ntk, i, epsilon):
    return -epsilon * ntk[i]
""", r"the sign is wrong\. Tried: first_order"),
    ],
    "01": [
        ("answer =", "answer = (20 * 10 + 10) + 3 * (10 * 10 + 10) + (10 + 1)", r"551 is not it"),
        ("def forward", """
def forward(x, w1, b1, w2, b2):
    return (x @ w1.T + b1) @ w2.T + b2
""", r"entries differ"),
        ("def forward", """
def forward(x, w1, b1, w2, b2):
    h = torch.relu(x @ w1.T + b1)
    return h @ w2[0] + b2
""", r"expected shape \(100, 1\), got \(100,\)"),
        ("changes =", "changes = True", r"True is not it"),
        ("able =", "able = 11", r"11 is not it"),
    ],
    "02": [
        ("def my_grads", """
def my_grads(model, x):
    pieces = torch.autograd.grad(model(x).sum(), model.parameters())
    return torch.cat([piece.flatten() for piece in pieces])
""", r"the sum over the examples"),
        ("def my_grads", """
def my_grads(model, x):
    weights = [p for name, p in model.named_parameters() if "bias" not in name]
    rows = []
    for xi in x:
        pieces = torch.autograd.grad(model(xi[None]).squeeze(), weights)
        rows.append(torch.cat([piece.flatten() for piece in pieces]))
    return torch.stack(rows)
""", r"expected shape \(5, 221\), got \(5, 210\) "
             r"\(columns are missing: all parameters in it, biases, too\?\)"),
        ("def recover", """
def recover(wrong):
    return torch.diff(wrong, dim=0)
""", r"expected shape \(5, 221\), got \(4, 221\)"),
        ("def recover", """
def recover(wrong):
    return wrong / torch.arange(1, len(wrong) + 1)[:, None]
""", r"entries differ, first \[1, 0\]"),
    ],
    "03": [
        ("def ntk_without_bias", """
def ntk_without_bias(x, W1, w2):
    z = x @ W1.T
    h, delta = torch.relu(z), w2 * (z > 0)
    return h @ h.T + 1 + (delta @ delta.T) * (x @ x.T)
""", r"off by the same 1\. A bias left out, or added\?"),
        ("def ntk_without_bias", """
def ntk_without_bias(x, W1, w2):
    h = torch.relu(x @ W1.T)
    return h @ h.T
""", r"\d of 9 entries differ, first \[0, 0\].*Tried: ntk_without_bias\(tensor of shape \(3, 64\)"),
        ("square =", "square = ntk_blocks.reshape(24, 24)",
         r"entries differ, first \[0, 3\]"),
        ("square =", "square = ntk_blocks.permute(2, 0, 3, 1).reshape(24, 24)",
         r"entries differ, first \[0, 1\]"),
        ("largest =", "largest = 353", r"353 is not it"),
        ("zeros =", "zeros = 0", r"0 is not it"),
    ],
    "04": [
        ("cell =", "cell = (28, 28)", r"'on the diagonal' is not it"),
        ("cell =", "cell = divmod(int((scans_ntk * off).argmax()), 100)", r"above the median'"),
        ("pair =", "pair = divmod(int((ntk * off).argmax()), 100)", r"2 of 2 entries differ"),
        ("def my_cosine", """
def my_cosine(rectangle, new_diagonal, old_diagonal):
    return rectangle / (new_diagonal[:, None] * old_diagonal)
""", r"3000 of 3000 entries differ"),
        ("def my_cosine", """
def my_cosine(rectangle, new_diagonal, old_diagonal):
    return rectangle / (old_diagonal.sqrt()[:, None] * new_diagonal.sqrt())
""", r"raises RuntimeError"),
        ("closer_to =", 'closer_to = "raw"', r"'raw' is not it"),
        ("renamed =", "renamed = -0.7", r"the sign is wrong"),
    ],
    "05": [
        ("def divisors", """
def divisors(net):
    return 1, 1
""", r"False is not it"),
        ("def divisors", """
def divisors(net):
    return net.lin2.in_features, net.lin2.in_features
""", r"False is not it"),
        ("def divisors", """
def divisors(net):
    return net.lin2.in_features, 64
""", r"False is not it"),
        ("layer_rate =", "layer_rate = 0.01 * 512", r"too large by a factor 2"),
        ("layer_rate =", "layer_rate = 0.01 * 2 / 512", r"too small by a factor"),
        ("factor =", "factor = 2", r"too small by a factor 2"),
        ("factor =", "factor = 1 / 4", r"too small by a factor 16"),
    ],
    "06": [
        ("answer =", "answer = 10", r"10 is not it"),
        ("def erf_ntk", """
def erf_ntk(angle):
    product = 2 / math.pi * torch.asin(2 * angle.cos() / 3)
    slopes = 4 / math.pi / torch.sqrt(9 - 4 * angle.cos() ** 2)
    return product + slopes * angle.cos()
""", r"too small by a factor 2\."),
        ("def erf_ntk", """
def erf_ntk(angle):
    product = 2 / math.pi * torch.asin(2 * angle.cos() / 3)
    slopes = 4 / math.pi / torch.sqrt(9 - 4 * angle.cos() ** 2)
    return 2 * product + 2 * slopes
""", r"entries differ"),
        ("def ntk_forward", """
def ntk_forward(x, w1, w2):
    h = torch.relu((1 / 20) ** 0.5 * x @ w1.T)
    return (2 / 10) ** 0.5 * h @ w2.T
""", r"too small by a factor 1\.41"),
        ("def ntk_forward", """
def ntk_forward(x, w1, w2):
    h = torch.relu((2 / 20) ** 0.5 * x @ w1.T)
    return (2 / 10) ** 0.5 * h @ w2[0]
""", r"expected shape \(100, 1\), got \(100,\)"),
    ],
    "07": [
        ("factor =", "factor = 2**30", r"too small by a factor 2\."),
        ("edge_of_leaky =", "edge_of_leaky = 2**0.5", r"is too large"),
        ("def limit_condition", """
def limit_condition(N, ratio):
    return 1 / (1 - ratio)
""", r"too small by a factor"),
        ("def limit_condition", """
def limit_condition(N, ratio):
    return N * ratio / (1 - ratio)
""", r"too small by a factor 1\.08"),
        ("def layers_until", """
def layers_until(c, goal):
    layers = 1
    while c < goal:
        c = (math.sqrt(1 - c**2) + (math.pi - math.acos(c)) * c) / math.pi
        layers += 1
    return layers
""", r"14 is not it\. Tried: layers_until\(0\.0, 0\.9\)"),
        ("def layers_until", """
def layers_until(c, goal):
    layers = 0
    while c < goal:
        c = (math.sqrt(1 - c**2) + (180 - math.degrees(math.acos(c))) * c) / math.pi
        layers += 1
    return layers
""", r"is not it\. Tried: layers_until"),
    ],
    "08": [
        ("width =", "width = 830", r"830 is not it"),
        ("def deepest", """
def deepest(n):
    return n // 5
""", r"4 is not it\. Tried: deepest\(20\)"),
        ("def deepest", """
def deepest(n):
    depth = 0
    while (1 + 5 / n) ** depth <= 2:
        depth += 1
    return depth
""", r"4 is not it\. Tried: deepest\(20\)"),
        ("factor =", "factor = 2**8", r"too small by a factor 2\."),
    ],
    "09": [
        ("def time_to", """
def time_to(fraction, ntk, error):
    return -np.log(fraction) / spectrum(ntk).eigenvalues[0].item() / 2
""", r"too small by a factor 1\.74\. Tried: time_to\(0\.2"),
        ("def time_to", """
def time_to(fraction, ntk, error):
    eigenvalues, modes = spectrum(ntk)
    parts = (modes.T @ error) ** 2
    times = torch.linspace(0, 2, 200_001)
    left = (torch.exp(-eigenvalues * times[:, None]) * parts).sum(dim=1) / parts.sum()
    return times[(left < fraction).int().argmax()].item()
""", r"too large by a factor 2\."),
        ("factor =", "factor = 2", r"too large by a factor 4"),
        ("steps_to_ruin =", "steps_to_ruin = 72", r"72 is not it"),
        ("slower =", "slower = 4", r"too large by a factor 2"),
    ],
    "10": [
        ("def half_steps", """
def half_steps(ntk, targets):
    eigenvalues, modes = torch.linalg.eigh(ntk)
    factors, error, steps = 1 - eigenvalues / eigenvalues[-1], modes.T @ targets, 0
    while error.norm() ** 2 > targets.norm() ** 2 / 2:
        error, steps = factors * error, steps + 1
    return steps
""", r"50 is not it\. Tried: half_steps"),
        ("def half_steps", """
def half_steps(ntk, targets):
    eigenvalues, modes = torch.linalg.eigh(ntk)
    error, steps = modes.T @ targets, 0
    while error.norm() > targets.norm() / 2:
        error, steps = (1 - 0.5 * eigenvalues / eigenvalues[-1]) * error, steps + 1
    return steps
""", r"is not it\. Tried: half_steps"),
        ("def half_steps", """
def half_steps(ntk, targets):
    eigenvalues, modes = torch.linalg.eigh(ntk)
    factors, error, steps = (-eigenvalues / eigenvalues[-1]).exp(), modes.T @ targets, 0
    while error.norm() > targets.norm() / 2:
        error, steps = factors * error, steps + 1
    return steps
""", r"22 is not it\. Tried: half_steps"),
        ("ratio =", "ratio = 16", r"too small by a factor 1\.1"),
        ("drawn =", "drawn = 28, 59", r"entries differ"),
    ],
    "11": [
        ("def mirrored", """
def mirrored(net):
    half = net.lin2.weight.shape[1] // 2
    with torch.no_grad():
        net.lin1.weight[half:], net.lin1.bias[half:] = net.lin1.weight[:half], net.lin1.bias[:half]
        net.lin2.weight[:, half:] = net.lin2.weight[:, :half]
    return net
""", r"of 156 entries differ, first \[0, 0\]"),
        ("def mirrored", """
def mirrored(net):
    half = net.lin2.weight.shape[1] // 2
    with torch.no_grad():
        net.lin2.weight[:, half:] = -net.lin2.weight[:, :half]
    return net
""", r"of 156 entries differ, first \[0, 0\]"),
        ("factors =", "factors = [1 / 3, 1 / 12]", r"entries differ"),
        ("ratios =", "ratios = [1 / 10_000, 1 / 100]", r"entries differ"),
    ],
    "12": [
        ("ends =", "ends = [[3 / 25, 4 / 25], [1 / 3, 0]]", r"2 of 4 entries differ"),
        ("ends =", "ends = [[0, 1 / 4], [3 / 25, 4 / 25]]", r"4 of 4 entries differ"),
        ("def right_with", """
def right_with(net, x, y, x_test, y_test):
    guess = regress(net, x, y, x)
    return ((guess * y) > 0).double().mean().item()
""", r".*too large.*Tried: right_with"),
        ("def right_with", """
def right_with(net, x, y, x_test, y_test):
    guess = regress(net, x, y, x_test)
    return (guess - y_test).square().mean().item()
""", r".*Tried: right_with"),
        ("rate =", "rate = 1", r"False is not it"),
        ("rate =", "rate = 0.0001", r"False is not it"),
    ],
    "13": [
        ("part =", "part = 0.25", r"too small by a factor 2"),
        ("part =", "part = 1", r"too large by a factor 2"),
        ("def way", """
def way(ntk, y):
    return y @ torch.linalg.solve(ntk, y)
""", r".*Tried: way"),
        ("def way", """
def way(ntk, y):
    return (ntk @ y).norm()
""", r".*Tried: way"),
        ("ridge_to_choose =", "ridge_to_choose = 0", r"0 is not it"),
        ("ridge_to_choose =", "ridge_to_choose = 100", r"100 is not it"),
    ],
    "14": [
        ("def largest", """
def largest(ntk, beta):
    return 2 / (1 - beta) / spectrum(ntk).eigenvalues[0].item()
""", r".*Tried: largest"),
        ("def largest", """
def largest(ntk, beta):
    return 2 / spectrum(ntk).eigenvalues[0].item()
""", r".*Tried: largest"),
        ("def forgotten", """
def forgotten(ntk, r, A, B):
    return ntk[A][:, B] @ torch.linalg.solve(ntk[B][:, B], r)
""", r"the sign is wrong"),
        ("def forgotten", """
def forgotten(ntk, r, A, B):
    return -ntk[A][:, B] @ r
""", r"2 of 2 entries differ, first \[0\].*Tried: forgotten"),
    ],
    "15": [
        ("def training_spread", """
def training_spread(t):
    decay = torch.linalg.matrix_exp(-t * Θ[:N, :N])
    return (decay @ K[:N, :N] @ decay).diagonal()
""", r"4 of 4 entries differ, first \[0\].*Tried: training_spread\(0\.1\)"),
        ("def training_spread", """
def training_spread(t):
    decay = torch.exp(-t * Θ[:N, :N].diagonal())
    return decay * K[:N, :N].diagonal().sqrt()
""", r"4 of 4 entries differ, first \[0\]"),
        ("def delta", """
def delta(net, x, θ_star):
    return get_grads(net, x) @ θ_star
""", r"4 of 4 entries differ, first \[0\]"),
        ("def delta", """
def delta(net, x, θ_star):
    first = net.lin1.weight.numel() + net.lin1.bias.numel()
    return -get_grads(net, x)[:, :first] @ θ_star[:first]
""", r"the sign is wrong"),
    ],
    "16": [
        ("def share(", """
def share(H, D):
    return (D @ D.T) * (H @ H.T)
""", r"4 of 4 entries differ, first \[0, 0\]"),
        ("def share(", """
def share(H, D):
    return D @ D.T + H @ H.T + 1
""", r"4 of 4 entries differ, first \[0, 0\]"),
        ("def share_of_two_uses", """
def share_of_two_uses(H1, D1, H2, D2):
    return (D1 @ D1.T) * (H1 @ H1.T + 1) + (D2 @ D2.T) * (H2 @ H2.T + 1)
""", r"36 of 36 entries differ, first \[0, 0\]"),
        ("def share_of_two_uses", """
def share_of_two_uses(H1, D1, H2, D2):
    D, H = D1 + D2, H1 + H2
    return (D @ D.T) * (H @ H.T + 1)
""", r"36 of 36 entries differ, first \[0, 0\]"),
        ("def caught", """
def caught(net, x, J):
    said, wanted = J.sum(dim=(0, 1)), gradient(net(x).sum(), net)
    return bool((said - wanted).norm() > 1e-6 * wanted.norm())
""", r"False is not it"),
        ("def caught", """
def caught(net, x, J):
    kernel = torch.einsum("iap,jbp->iajb", J, J).flatten(2).flatten(0, 1)
    return not torch.allclose(kernel, kernel.T)
""", r"False is not it"),
        ("def caught", """
def caught(net, x, J):
    R = torch.randn(J.shape[:2]).to(J)
    return bool(torch.any(torch.einsum("io,iop->p", R, J) != gradient((R * net(x)).sum(), net)))
""", r"True is not it"),
    ],
    "17": [
        ("def taken", """
def taken(kernel, M, y, group):
    inverse = np.linalg.inv(M)
    surprises = (inverse @ y)[group] / inverse.diagonal()[group, None]
    return (kernel @ inverse)[:, group] @ surprises
""", r"\d+ of 300 entries differ"),
        ("def taken", """
def taken(kernel, M, y, group):
    return kernel[:, group] @ np.linalg.solve(M, y)[group]
""", r"300 of 300 entries differ, first \[0, 0\]"),
    ],
    "18": [
        ("def mean_cosine", """
def mean_cosine(distance, σ):
    return math.exp(-(σ * distance) ** 2 / 2)
""", r"too large by a factor 1\.21.*Tried: mean_cosine\(0\.1, 1\.0\)"),
        ("def mean_cosine", """
def mean_cosine(distance, σ):
    return math.cos(2 * math.pi * σ * distance)
""", r"Tried: mean_cosine\(0\.1, 1\.0\)"),
        ("def balance", """
def balance(Θ, starts):
    own = Θ.diagonal()
    parts = zip(starts, [*starts[1:], len(own)])
    return torch.stack([own[a:b].sum() / own.sum() for a, b in parts])
""", r"Tried: balance\("),
        ("def balance", """
def balance(Θ, starts):
    own = Θ.diagonal()
    parts = zip(starts, [*starts[1:], len(own)])
    return torch.stack([own.mean() / own[a:b].mean() for a, b in parts])
""", r"Tried: balance\("),
    ],
}
