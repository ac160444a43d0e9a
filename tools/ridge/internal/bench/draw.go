package bench

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// The distributions of keys.
const (
	uniform = "uniform"
	zipfian = "zipfian"
	latest  = "latest"
)

// Distributions lists what keys can be drawn by.
func Distributions() []string { return []string{uniform, zipfian, latest} }

// theta is the skew of YCSB: the k-th most popular of n keys is drawn with a
// probability in proportion to 1/k^theta.
const theta = 0.99

// zipf draws ranks, 0 the most popular, as in Gray, Sundaresan, Englert,
// Baclawski, Weinberger: "Quickly generating billion-record synthetic
// databases", SIGMOD 1994. It is immutable and safe for concurrent use. Ranks 0
// and 1 are exact, the others an approximation by a continuous curve.
//
// YCSB draws from 10^10 ranks and folds them into the keyspace with a hash; here
// the ranks are the keys, and the keyspace scatters them with a bijection. So no
// two ranks fall on one key, and the skew is that of theory for any n.
type zipf struct {
	n                        int64
	zetan, alpha, eta, above float64
}

func newZipf(n int64) *zipf {
	z := &zipf{n: n, zetan: zeta(n), alpha: 1 / (1 - theta), above: 1 + math.Pow(0.5, theta)}
	z.eta = (1 - math.Pow(2/float64(n), 1-theta)) / (1 - zeta(2)/z.zetan)
	return z
}

// draw returns a rank below n.
func (z *zipf) draw(r *rand.Rand) int64 {
	u := r.Float64()
	switch uz := u * z.zetan; {
	case uz < 1 || z.n == 1:
		return 0
	case uz < z.above || z.n == 2:
		return 1
	}
	rank := int64(float64(z.n) * math.Pow(z.eta*u-z.eta+1, z.alpha))
	return min(rank, z.n-1)
}

// zeta is the sum of 1/k^theta for k from 1 to n. Far from 1 the sum is taken
// by the Euler-Maclaurin formula; its error there is below 1e-12.
func zeta(n int64) float64 {
	const exact = 10_000
	sum := 0.0
	for k := int64(1); k <= min(n, exact); k++ {
		sum += math.Pow(float64(k), -theta)
	}
	if n <= exact {
		return sum
	}
	a, b := float64(exact), float64(n)
	return sum + (math.Pow(b, 1-theta)-math.Pow(a, 1-theta))/(1-theta) +
		(math.Pow(b, -theta)-math.Pow(a, -theta))/2 -
		theta*(math.Pow(b, -theta-1)-math.Pow(a, -theta-1))/12
}

// drawer returns the index of a key for one draw.
type drawer struct {
	kind string
	// n is the number of keys before inserts. Draws range over so many keys,
	// also when there are more by now: uniform and zipfian over the first ones,
	// latest over the newest.
	n        int64
	zipf     *zipf
	inserted *frontier
}

func newDrawer(kind string, n int64, inserted *frontier) *drawer {
	d := &drawer{kind: kind, n: n, inserted: inserted}
	if kind != uniform {
		d.zipf = newZipf(n)
	}
	return d
}

func (d *drawer) draw(r *rand.Rand) int64 {
	switch d.kind {
	case zipfian:
		return d.zipf.draw(r)
	case latest:
		return d.inserted.acked.Load() - 1 - d.zipf.draw(r)
	}
	return r.Int64N(d.n)
}

// frontier gives out the indexes of inserts and knows up to which all are
// there, so that latest draws no key that is still on its way.
type frontier struct {
	next, acked atomic.Int64
	mu          struct {
		sync.Mutex
		// done holds acknowledged indexes at or above acked. Bound: one for
		// each caller but the one that is behind.
		done map[int64]struct{}
	}
}

func newFrontier(n int64) *frontier {
	f := &frontier{}
	f.next.Store(n)
	f.acked.Store(n)
	f.mu.done = map[int64]struct{}{}
	return f
}

// take returns the index of the next insert.
func (f *frontier) take() int64 { return f.next.Add(1) - 1 }

// settle says that the insert of index has ended. One that failed counts too,
// or the frontier would stand still for ever: its key may be missing.
func (f *frontier) settle(index int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.done[index] = struct{}{}
	at := f.acked.Load()
	for {
		if _, ok := f.mu.done[at]; !ok {
			break
		}
		delete(f.mu.done, at)
		at++
	}
	f.acked.Store(at)
}
