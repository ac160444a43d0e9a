package engine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePageSizeBytes is a huge page of amd64, and of arm64 with pages of 4 KiB.
// Where they are larger, the kernel takes what it can of what it is offered.
const hugePageSizeBytes = 2 << 20

// useHugePages asks the kernel for huge pages under all of b that whole ones
// fit under. It is advice: a kernel that has none to give, or is told not to,
// leaves b as it is.
func useHugePages(b []byte) {
	from := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % hugePageSizeBytes)
	if whole := (len(b) - from) / hugePageSizeBytes * hugePageSizeBytes; whole > 0 {
		_ = unix.Madvise(b[from:from+whole], unix.MADV_HUGEPAGE)
	}
}
