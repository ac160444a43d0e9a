package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one ridge process with its directory, its ports and its log. They
// stay the same over restarts. Its methods are safe for concurrent use.
type Process struct {
	// Name is "pd-1" or "store-2".
	Name string
	// Dir holds its data, Log what it wrote.
	Dir, Log string
	// GRPC, Raft and HTTP are where it listens.
	GRPC, Raft, HTTP string

	binary string
	args   []string

	mu struct {
		sync.Mutex
		cmd *exec.Cmd
		// exited is closed when cmd is reaped; err says how it ended.
		exited chan struct{}
		err    error
	}
	wg sync.WaitGroup
}

// Start starts the process. It does not wait until it serves.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd != nil {
		return fmt.Errorf("harness: %s is running", p.Name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("harness: %w", err)
	}
	defer log.Close()
	now := time.Now().Format(time.TimeOnly)
	fmt.Fprintf(log, "---- %s: start %s\n", now, strings.Join(p.args, " "))
	cmd := exec.Command(p.binary, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = cleanEnvironment()
	// It must not outlive the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("harness: start %s: %w", p.Name, err)
	}
	exited := make(chan struct{})
	p.mu.cmd, p.mu.exited, p.mu.err = cmd, exited, nil
	p.wg.Go(func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.mu.cmd, p.mu.err = nil, err
		p.mu.Unlock()
		close(exited)
	})
	return nil
}

// Running reports whether the process lives (stopped by SIGSTOP counts).
func (p *Process) Running() bool { return p.PID() != 0 }

// PID is the process id, 0 when it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return 0
	}
	return p.mu.cmd.Process.Pid
}

// Kill is kill -9, and waits until the process is gone.
func (p *Process) Kill() { _ = p.end(syscall.SIGKILL, 30*time.Second) }

// Stop is SIGTERM: the process drains. It is an error when that does not end
// well within 30 s; then it is killed.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM, 30*time.Second) }

func (p *Process) end(signal syscall.Signal, patience time.Duration) error {
	if !p.signal(signal) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := p.Wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		p.signal(syscall.SIGKILL)
		_ = p.Wait(context.Background())
		return fmt.Errorf("harness: %s did not end within %s", p.Name, patience)
	}
	if signal == syscall.SIGKILL {
		return nil
	}
	return err
}

// Pause is SIGSTOP: the process is there and does nothing.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume is SIGCONT.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// signal reports whether there was a process to signal.
func (p *Process) signal(s syscall.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.cmd != nil && p.mu.cmd.Process.Signal(s) == nil
}

// Wait waits until the process has ended and returns how: nil is code 0.
func (p *Process) Wait(ctx context.Context) error {
	p.mu.Lock()
	exited := p.mu.exited
	p.mu.Unlock()
	if exited == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-exited:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.err != nil {
		return fmt.Errorf("harness: %s: %w", p.Name, p.mu.err)
	}
	return nil
}

// Restart stops the process well if it runs, starts it and waits until it
// serves.
func (p *Process) Restart(ctx context.Context) error {
	if err := p.Stop(); err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	return p.AwaitReady(ctx)
}

// SetFlag changes a flag for the next start.
func (p *Process) SetFlag(name, value string) {
	i := slices.Index(p.args, name)
	if i < 0 {
		p.args = append(p.args, name, value)
		return
	}
	p.args[i+1] = value
}

// Output returns what the process has written to its log.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Result is how a command ended.
type Result struct {
	Code     int
	Out, Err string
}

func (r Result) String() string {
	return fmt.Sprintf("code %d\n%s%s", r.Code, r.Out, r.Err)
}

// Command runs the ridge binary to its end with in as standard input.
func Command(ctx context.Context, binary, in string, args ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	var out, errOut strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &errOut
	cmd.Env = cleanEnvironment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	r := Result{Out: out.String(), Err: errOut.String()}
	if _, exited := errors.AsType[*exec.ExitError](err); exited && ctx.Err() == nil {
		r.Code = cmd.ProcessState.ExitCode()
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("harness: ridge %s: %w", strings.Join(args, " "), err)
	}
	return r, nil
}

// cleanEnvironment has no variable that would configure ridge.
func cleanEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "RIDGE_") || strings.HasPrefix(e, "GOMEMLIMIT=")
	})
}

var build struct {
	sync.Once
	path string
	err  error
}

// Binary returns the ridge binary: the one RIDGE_BINARY names, or one that is
// built once per test process, with the costly assertions on.
func Binary() (string, error) {
	build.Do(func() {
		if build.path = os.Getenv("RIDGE_BINARY"); build.path != "" {
			build.path, build.err = filepath.Abs(build.path)
			return
		}
		dir, err := os.MkdirTemp("", "ridge-test-")
		if err != nil {
			build.err = err
			return
		}
		build.path = filepath.Join(dir, "ridge")
		cmd := exec.Command("go", "build", "-tags", "invariants", "-o", build.path,
			"github.com/ridgekv/ridge/tools/ridge")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("harness: build ridge: %w\n%s", err, out)
		}
	})
	return build.path, build.err
}

// RemoveBinary deletes what Binary built. Call it at the end of TestMain.
func RemoveBinary() {
	if build.path != "" && os.Getenv("RIDGE_BINARY") == "" {
		_ = os.RemoveAll(filepath.Dir(build.path))
	}
}

// NewProcess makes a process of any ridge command line. dir holds its log.
func NewProcess(binary, name, dir, grpc string, args ...string) *Process {
	return &Process{
		Name: name, Dir: dir, Log: filepath.Join(dir, name+".log"), GRPC: grpc,
		binary: binary, args: args,
	}
}
