package engine

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// The memory of the memtable is marked for huge pages, and slices of any size
// and place are taken without harm.
func TestMemtableUsesHugePages(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Skip("this kernel has no transparent huge pages")
	}
	e := openedEngine(t)
	w := &WriteSet{}
	w.Put(20, []byte("k"), Row{CommitTS: 1})
	if err := e.Commit(w); err != nil {
		t.Fatal(err)
	}
	buf := e.committer.badger.layout.of(e.db).buf
	if flags := vmFlags(t, &buf[len(buf)/2]); !strings.Contains(flags, " hg") {
		t.Errorf("the memtable's pages have the flags %q", flags)
	}
	const page = hugePageSizeBytes
	for _, size := range []int{1, 4096, page - 1, page, 3 * page} {
		for _, from := range []int{0, 1, size / 2} {
			useHugePages(buf[from:size])
		}
	}
}

// vmFlags are those of the mapping that p points into.
func vmFlags(t *testing.T, p *byte) string {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, inside := uintptr(unsafe.Pointer(p)), false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to uintptr
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); err == nil {
			inside = from <= at && at < to
		}
		if flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && inside {
			return flags
		}
	}
	t.Fatal("no mapping holds the memtable")
	return ""
}
