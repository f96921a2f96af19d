"""Arithmetic on tiles (CHUNKS, BLOCK) of lanes, and on tuples of tiles.

A tuple has an entry for each of the k states of a lane, or for each of the k * k entries of a
block, row by row.
"""

import math

import triton
import triton.language as tl

# Products are kept within this, as `newton.newton` does: sqrt(largest number) / 100.
_LIMIT32 = tl.constexpr(math.sqrt(3.4028234663852886e38) / 100)
_LIMIT64 = tl.constexpr(math.sqrt(1.7976931348623157e308) / 100)


# -- one tile -------------------------------------------------------------------------------------


@triton.jit
def added(a, b):
    return a + b


@triton.jit
def larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def zeros_like(x):
    # tl.zeros_like is a function compiled for good, which an interpreted one cannot call
    return tl.full(x.shape, 0.0, x.dtype)


@triton.jit
def limited(x):
    """Return where |x| is below the limit of products."""
    if x.dtype == tl.float32:
        return x < _LIMIT32
    else:
        return x < _LIMIT64


@triton.jit
def clamped(x):
    if x.dtype == tl.float32:
        return tl.minimum(tl.maximum(x, -_LIMIT32), _LIMIT32)
    else:
        return tl.minimum(tl.maximum(x, -_LIMIT64), _LIMIT64)


@triton.jit
def product(x):
    """Return an entry of a product of Jacobians as Newton takes it: finite, NaN as 0."""
    return clamped(tl.where(x != x, 0.0, x))


@triton.jit
def gap(a, b):
    """Return a - b, an exact 0 where both are the same inf or both NaN."""
    return tl.where((a == b) | ((a != a) & (b != b)), 0.0, a - b)


@triton.jit
def distance(a, b):
    return tl.abs(gap(a, b))


@triton.jit
def finite(x):
    return tl.where(tl.abs(x) < float("inf"), tl.abs(x), 0.0)


@triton.jit
def peak(x, where):
    x = tl.where(where, tl.where(x != x, float("inf"), x), 0.0)
    return tl.reduce(tl.reduce(x, 1, larger), 0, larger)


@triton.jit
def some(x):
    return tl.reduce(tl.reduce(x.to(tl.int32), 1, larger), 0, larger) > 0


# What runs over the chunks of a lane begins anew in the rows of `cut`, (CHUNKS, 1), if given.


@triton.jit
def running_max(x, cut):
    """Return the largest so far; x >= 0."""
    if cut is None:
        return tl.associative_scan(x, 0, larger)
    else:
        return tl.associative_scan((through(cut, x), x), 0, larger_through)[1]


@triton.jit
def running_sum(x, cut):
    if cut is None:
        return tl.associative_scan(x, 0, added)
    else:
        return tl.associative_scan((through(cut, x), x), 0, added_through)[1]


@triton.jit
def whole_max(x, cut):
    """Return the largest of all rows from one cut to the next; x >= 0."""
    if cut is None:
        return tl.reduce(x, 0, larger)[None, :]
    else:
        last = cut.shape[0] - 1
        row = tl.arange(0, cut.shape[0])[:, None]
        next = tl.gather(cut.to(tl.int32), tl.where(row < last, row + 1, last), 0) != 0
        given = (through(next | (row == last), x), running_max(x, cut))
        return tl.associative_scan(given, 0, larger_through, reverse=True)[1]


@triton.jit
def all_so_far(ok, cut):
    return running_max((~ok).to(tl.int32), cut) == 0


@triton.jit
def through(cut, x):
    """Return whether a row goes on from the one before, an integer for each number of x."""
    return tl.broadcast_to(~cut, x.shape).to(tl.int32)


@triton.jit
def larger_through(goes, a, GOES, A):
    return goes & GOES, larger(A, a * GOES.to(a.dtype))


@triton.jit
def added_through(goes, a, GOES, A):
    return goes & GOES, A + a * GOES.to(a.dtype)


@triton.jit
def earlier(x, first, c):
    """Return x with its rows moved on by one: row c gets row c - 1, row 0 gets `first`."""
    row = tl.broadcast_to(tl.where(c > 0, c - 1, 0), x.shape)
    return tl.where(c > 0, tl.gather(x, row, 0), first)


@triton.jit
def two_sum(sum, lost, x):
    """Return sum + x, and what its rounding has lost so far (D. Knuth)."""
    new = sum + x
    part = new - sum
    return new, lost + ((sum - (new - part)) + (x - part))


# -- tuples of tiles ------------------------------------------------------------------------------


@triton.jit
def each(f: tl.constexpr, x):
    """Return f of each entry."""
    found = ()
    for i in tl.static_range(len(x)):
        found = found + (f(x[i]),)
    return found


@triton.jit
def each_pair(f: tl.constexpr, x, y):
    """Return f of each entry of x and that of y."""
    found = ()
    for i in tl.static_range(len(x)):
        found = found + (f(x[i], y[i]),)
    return found


@triton.jit
def each_cast(x, dtype: tl.constexpr):
    found = ()
    for i in tl.static_range(len(x)):
        found = found + (x[i].to(dtype),)
    return found


@triton.jit
def each_where(condition, x, y):
    found = ()
    for i in tl.static_range(len(x)):
        found = found + (tl.where(condition, x[i], y[i]),)
    return found


@triton.jit
def kept(x, cut):
    """Return x, 0 in chunks of the `cut`, if there is one."""
    if cut is None:
        return x
    else:
        return each_where(cut, each(zeros_like, x), x)


@triton.jit
def each_earlier(x, first, c):
    found = ()
    for i in tl.static_range(len(x)):
        found = found + (earlier(x[i], first[i], c),)
    return found


@triton.jit
def each_broadcast(x, shape: tl.constexpr):
    found = ()
    for i in tl.static_range(len(x)):
        found = found + (tl.broadcast_to(x[i], shape),)
    return found


@triton.jit
def each_two_sum(sum, lost, x):
    sums = ()
    rest = ()
    for i in tl.static_range(len(x)):
        new, missing = two_sum(sum[i], lost[i], x[i])
        sums = sums + (new,)
        rest = rest + (missing,)
    return sums, rest


@triton.jit
def largest(parts):
    """Return the largest magnitude over the entries."""
    most = tl.abs(parts[0])
    for i in tl.static_range(1, len(parts)):
        most = larger(most, tl.abs(parts[i]))
    return most


# -- blocks ---------------------------------------------------------------------------------------
#
# FORM has a letter for each entry of the left block: "0" and "1" where it is that number whatever
# the state, "x" elsewhere. A structural zero is left out: what it would multiply may not be finite.
# None: no entry is known.


@triton.jit
def matmul(a, b, FORM: tl.constexpr, WIDTH: tl.constexpr):
    """Return the product of a, of k columns and of that form, with b, of WIDTH columns."""
    k: tl.constexpr = len(b) // WIDTH
    found = ()
    for row in tl.static_range(len(a) // k):
        for column in tl.static_range(WIDTH):
            terms = ()
            for i in tl.static_range(k):
                x = b[i * WIDTH + column]
                if FORM is None:
                    terms = terms + (a[row * k + i] * x,)
                elif FORM[row * k + i] == "1":
                    terms = terms + (x,)
                elif FORM[row * k + i] != "0":
                    terms = terms + (a[row * k + i] * x,)
            found = found + (total(terms, b[0]),)
    return found


@triton.jit
def total(terms, like):
    """Return the sum of the terms, a tile of zeros like that one if there are none."""
    if len(terms) == 0:
        return zeros_like(like)
    else:
        result = terms[0]
        for i in tl.static_range(1, len(terms)):
            result = result + terms[i]
        return result


@triton.jit
def square(a, k: tl.constexpr):
    return each(clamped, matmul(a, a, None, k))


@triton.jit
def transposed(a, k: tl.constexpr):
    found = ()
    for entry in tl.static_range(k * k):
        found = found + (a[entry % k * k + entry // k],)
    return found


@triton.jit
def identity(x):
    """Return the k * k entries of the identity for states like x."""
    k: tl.constexpr = len(x)
    found = ()
    for entry in tl.static_range(k * k):
        found = found + (zeros_like(x[0]) + (1.0 if entry // k == entry % k else 0.0),)
    return found


@triton.jit
def composed(a, b, A, B):
    """Return the map x -> A (a x + b) + B, as the entries of its block and then of its vector."""
    block = each(clamped, matmul(A, a, None, len(b)))
    return block + each_pair(added, B, matmul(A, b, None, 1))
