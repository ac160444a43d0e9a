package workload

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// SelfCPU is the processor time this process has used.
func SelfCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ProcessCPU is the processor time a process has used; 0 when it is gone.
func ProcessCPU(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name may hold anything; the fields follow its last parenthesis.
	fields := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
	// ticksPerSecond is USER_HZ, which Linux has fixed for all programs.
	const user, system, ticksPerSecond = 11, 12, 100
	if len(fields) <= system {
		return 0
	}
	u, _ := strconv.ParseInt(fields[user], 10, 64)
	s, _ := strconv.ParseInt(fields[system], 10, 64)
	return time.Duration(u+s) * (time.Second / ticksPerSecond)
}
