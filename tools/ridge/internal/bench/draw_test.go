package bench

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	metapb "github.com/ridgekv/ridge/proto/ridge/meta/v1"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func seeded() *rand.Rand { return rand.New(rand.NewPCG(11, 13)) }

// TestUniform: a chi-square test. With 999 degrees of freedom the statistic
// lies below 1,143 in 999 of 1,000 cases, and above 866 in as many: draws that
// are too even are no draws.
func TestUniform(t *testing.T) {
	const n, draws = 1000, 1_000_000
	d, r := newDrawer(uniform, n, newFrontier(n)), seeded()
	counts := make([]float64, n)
	for range draws {
		counts[d.draw(r)]++
	}
	chi := 0.0
	for _, c := range counts {
		chi += (c - draws/n) * (c - draws/n) / (draws / n)
	}
	if chi < 866 || chi > 1143 {
		t.Errorf("chi-square %.0f", chi)
	}
}

// TestZipfian compares the frequencies of ranks with theory: p(k) = 1/(k^theta
// zeta(n)). Ranks 0 and 1 are exact but for chance; beyond, the generator is a
// continuous approximation, whose shares of whole decades are close.
func TestZipfian(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 100, 10_000, 1 << 40} {
		const draws = 200_000
		z, r := newZipf(n), seeded()
		counts := map[int64]int{}
		decades := map[int]float64{}
		for range draws {
			k := z.draw(r)
			if k < 0 || k >= n {
				t.Fatalf("n %d: rank %d", n, k)
			}
			counts[k]++
			decades[decade(k)]++
		}
		for k := range min(n, 2) {
			p := math.Pow(float64(k+1), -theta) / zeta(n)
			got := float64(counts[k])
			if sigma := math.Sqrt(draws * p * (1 - p)); math.Abs(got-draws*p) > 5*sigma+1e-9 {
				t.Errorf("n %d: rank %d was drawn %.0f times, want %.0f ± %.0f", n, k, got, draws*p, sigma)
			}
		}
		for d, got := range decades {
			low, high := int64(math.Pow10(d)), min(n, int64(math.Pow10(d+1)))
			if d == 0 {
				low = 0
			}
			p := zeta(high) / zeta(n)
			if low > 0 {
				p -= zeta(low) / zeta(n)
			}
			if math.Abs(got/draws-p) > 0.02 {
				t.Errorf("n %d: ranks %d to %d have %.4f of the draws, want %.4f", n, low, high, got/draws, p)
			}
		}
	}
}

// decade is 0 for ranks 0 to 9, 1 for 10 to 99, and so on.
func decade(k int64) int {
	d := 0
	for ; k >= 10; k /= 10 {
		d++
	}
	return d
}

// TestZeta: the formula continues the sum.
func TestZeta(t *testing.T) {
	sum := 0.0
	for k := int64(1); k <= 200_000; k++ {
		sum += math.Pow(float64(k), -theta)
		if k == 1 || k == 9_999 || k == 10_000 || k == 10_001 || k == 50_000 || k == 200_000 {
			if got := zeta(k); math.Abs(got-sum) > 1e-9 {
				t.Errorf("zeta(%d) = %.12f, want %.12f", k, got, sum)
			}
		}
	}
	// YCSB's constant for 10^10 items.
	if got := zeta(10_000_000_000); math.Abs(got-26.46902820178302) > 1e-6 {
		t.Errorf("zeta(1e10) = %.9f", got)
	}
}

// TestLatest: the newest key is the most popular, older ones follow by
// Zipf's law, and nothing is drawn that is not there.
func TestLatest(t *testing.T) {
	const n, draws = 1000, 200_000
	f := newFrontier(n)
	d, r := newDrawer(latest, n, f), seeded()
	for range 500 {
		f.settle(f.take())
	}
	held := f.take() // on its way: neither it nor what follows is drawn
	f.settle(f.take())
	counts := map[int64]int{}
	for range draws {
		counts[d.draw(r)]++
	}
	p := 1 / zeta(n)
	newest := held - 1
	if got := float64(counts[newest]) / draws; math.Abs(got-p) > 0.01 {
		t.Errorf("the newest has %.3f of the draws, want %.3f", got, p)
	}
	for k := range counts {
		if k > newest || k <= newest-n {
			t.Fatalf("key %d was drawn, the newest is %d", k, newest)
		}
	}
	if counts[newest] < counts[newest-1] || counts[newest-1] < counts[newest-10] {
		t.Error("older keys are drawn more often")
	}
	f.settle(held)
	if got := f.acked.Load(); got != held+2 {
		t.Errorf("the frontier is at %d, want %d", got, held+2)
	}
}

// TestFrontier: whatever the order of ends, the frontier is behind the last
// index when all have ended, and never beyond one that has not.
func TestFrontier(t *testing.T) {
	f := newFrontier(100)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				i := f.take()
				if f.acked.Load() > i {
					t.Errorf("%d is acknowledged, and was not yet written", i)
				}
				f.settle(i)
			}
		})
	}
	wg.Wait()
	if f.acked.Load() != 8100 || len(f.mu.done) != 0 {
		t.Errorf("the frontier is at %d, %d are left", f.acked.Load(), len(f.mu.done))
	}
}

// TestKeyspace: keys are distinct, of one length, below their span's end, and
// the bounds cut them into equal shares.
func TestKeyspace(t *testing.T) {
	s := keyspace{[]byte("bench/")}
	const n, parts = 100_000, 16
	bounds := s.bounds(parts)
	if len(bounds) != parts+1 || !slices.IsSortedFunc(bounds, bytes.Compare) {
		t.Fatalf("bounds %q", bounds)
	}
	seen := map[string]bool{}
	shares := make([]float64, parts)
	for i := range int64(n) {
		k := s.append(nil, i)
		if len(k) != len("bench/")+hashDigits || !s.span().Contains(k) || seen[string(k)] {
			t.Fatalf("key %d is %q", i, k)
		}
		seen[string(k)] = true
		part, found := slices.BinarySearchFunc(bounds, k, bytes.Compare)
		if !found {
			part--
		}
		shares[part]++
	}
	for i, share := range shares {
		if math.Abs(share-n/parts) > 5*math.Sqrt(n/parts) {
			t.Errorf("part %d holds %.0f of %d keys", i, share, n)
		}
	}
	// Load and run are different processes, perhaps of different versions.
	if got := string(s.append(nil, 1)); got != "bench/910a2dec89025cc1" {
		t.Errorf("the key of 1 is %s: keys that were loaded are not found any more", got)
	}
	if got := halving(bounds); len(got) != len(bounds) || !bytes.Equal(got[0], bounds[parts/2]) {
		t.Errorf("halving begins at %q", got[0])
	}
}

// TestEvening: moves go to voters on stores that are up, and leave no store
// with two leaders more than another.
func TestEvening(t *testing.T) {
	leaders := map[uint64]int{1: 16, 2: 0, 3: 0, 4: 0} // 4 holds no replica
	var routes []*pdpb.Route
	for i := range uint64(16) {
		routes = append(routes, &pdpb.Route{
			Leader: &metapb.Leader{StoreId: 1},
			Range: &metapb.Range{RangeId: i + 1, Replicas: []*metapb.Replica{
				{StoreId: 1, Role: metapb.Role_ROLE_VOTER},
				{StoreId: 2, Role: metapb.Role_ROLE_VOTER},
				{StoreId: 3, Role: metapb.Role_ROLE_VOTER},
				{StoreId: 4, Role: metapb.Role_ROLE_LEARNER},
				{StoreId: 5, Role: metapb.Role_ROLE_VOTER}, // it is down
			}},
		})
	}
	for _, m := range evening(leaders, routes) {
		leaders[1]--
		leaders[m.store]++
	}
	if leaders[1] < 5 || leaders[1] > 6 || leaders[2]+leaders[3] != 16-leaders[1] || leaders[4]+leaders[5] != 0 ||
		leaders[2] < 5 || leaders[3] < 5 {
		t.Errorf("leaders %v", leaders)
	}
}
