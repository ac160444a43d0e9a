package serve

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Listen opens a TCP listener. what names it in the error, with the setting
// that moves it.
func Listen(what, setting, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use by another process: stop it or choose another "+
			"address with %s", what, address, setting)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w (choose another address with %s)", what, err, setting)
	}
	return l, nil
}

// Probe reports, in the words of Listen, whether address can be listened on.
// It is for listeners that a library opens later and reports badly.
func Probe(what, setting, address string) error {
	l, err := Listen(what, setting, address)
	if err != nil {
		return err
	}
	return l.Close()
}

// Lock makes sure that one process at a time uses dir, creating it, and that all
// of them are of one kind: "pd", "store" or "dev". The lock goes away with the
// process, however it ends.
func Lock(dir, kind string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "PROCESS"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.Read(holder)
		_ = f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("directory %s: lock: %w", dir, err)
		}
		return nil, fmt.Errorf("directory %s is in use by another process (pid %s): two processes on "+
			"one directory would destroy it", dir, strings.TrimSpace(string(holder[:n])))
	}
	if err := claim(dir, kind); err != nil {
		_ = f.Close()
		return nil, err
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { _ = f.Close() }, nil
}

// claim refuses a directory of another kind: a wrong --dir would mix up both.
func claim(dir, kind string) error {
	path := filepath.Join(dir, "KIND")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(path, []byte(kind+"\n"), 0o600); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	if have := strings.TrimSpace(string(b)); have != "" && have != kind {
		return fmt.Errorf("directory %s belongs to `ridge %s`: `ridge %s` needs one of its own, "+
			"choose it with --dir", dir, have, kind)
	}
	return nil
}
