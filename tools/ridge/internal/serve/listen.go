package serve

import (
	"errors"
	"fmt"
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

// Lock makes sure that one process at a time uses dir, creating it. The lock
// goes away with the process, however it ends.
func Lock(dir string) (release func(), err error) {
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
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { _ = f.Close() }, nil
}
