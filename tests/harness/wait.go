package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// pollInterval is how often a state is looked at that nobody announces.
const pollInterval = 20 * time.Millisecond

// Eventually calls check until it returns nil, for as long as within. The
// error is the last one of check.
func Eventually(
	ctx context.Context, within time.Duration, what string, check func(context.Context) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	began := time.Now()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		// A check that was cut short by the deadline has nothing to tell.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("harness: %s: not after %s: %w", what,
				time.Since(began).Round(time.Millisecond), last)
		}
		Rest(ctx, pollInterval)
	}
}

// Rest waits for d or the end of ctx. It is for pacing a workload, not for
// waiting until something has happened.
func Rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// AwaitReady waits until the process says that it serves. It fails at once
// when the process ends.
func (p *Process) AwaitReady(ctx context.Context) error {
	var ended error
	err := Eventually(ctx, time.Minute, p.Name+" serves", func(ctx context.Context) error {
		if !p.Running() {
			ended = fmt.Errorf("harness: %s has ended:\n%s", p.Name, tail(p.Output(), 30))
			return nil
		}
		return p.readyz(ctx)
	})
	return errors.Join(err, ended)
}

func (p *Process) readyz(ctx context.Context) error {
	_, err := p.HTTPGet(ctx, "/readyz")
	return err
}

// HTTPGet asks the HTTP endpoint of the process. An answer other than 200 is an
// error that holds its text.
func (p *Process) HTTPGet(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.HTTP+path, nil)
	if err != nil {
		return "", err
	}
	request.Close = true // no connection stays behind
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// tail returns the last n lines of text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

var ports struct {
	sync.Mutex
	taken map[int]bool
}

// FreeAddress returns a loopback address that nothing listens on. It lies below
// the ports the system gives to outgoing connections, so that a process that is
// down finds its port free when it comes back.
func FreeAddress() (string, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]bool{}
	}
	const low, high = 10_000, 32_000
	for range 1000 {
		port := low + rand.IntN(high-low)
		if ports.taken[port] {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		_ = l.Close()
		ports.taken[port] = true
		return address, nil
	}
	return "", errors.New("harness: no free port")
}
