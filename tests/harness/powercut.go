package harness

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// PowerCut does to the directory of a store that is down what a power loss may
// do to one that ran: of what the engine wrote after its last flush anything
// may be lost, while what was flushed and the Raft log, which is synced with
// every write, stay. The store must have run with --log-level debug. It returns
// what was done to each file; nothing, when all was flushed.
func (p *Process) PowerCut(r *rand.Rand) ([]string, error) {
	if p.Running() {
		return nil, fmt.Errorf("harness: %s is running", p.Name)
	}
	flushed, err := p.lastFlush()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(p.Dir, "engine", "*.mem"))
	if err != nil {
		return nil, fmt.Errorf("harness: %w", err)
	}
	slices.Sort(files)
	var done []string
	for _, path := range files {
		safe, end, err := unsynced(path, flushed)
		if err != nil {
			return done, fmt.Errorf("harness: read %s: %w", path, err)
		}
		if safe == end {
			continue
		}
		what, err := tear(path, safe, end, r)
		if err != nil {
			return done, fmt.Errorf("harness: tear %s: %w", path, err)
		}
		done = append(done, fmt.Sprintf("%s flushed %d, %s had %d bytes more: %s",
			p.Name, flushed, filepath.Base(path), end-safe, what))
	}
	return done, nil
}

var flushLine = regexp.MustCompile(`msg=flushed op=flush seq=(\d+)`)

// lastFlush is the newest commit that the engine may have promised to keep. It
// tells of a flush before it promises anything.
func (p *Process) lastFlush() (uint64, error) {
	all := flushLine.FindAllStringSubmatch(p.Output(), -1)
	if len(all) == 0 {
		return 0, fmt.Errorf("harness: %s has told of no flush: --log-level debug?", p.Name)
	}
	return strconv.ParseUint(all[len(all)-1][1], 10, 64)
}

// memHeaderBytes come before the first entry of a *.mem file.
const memHeaderBytes = 20

// unsynced returns where the commits up to flushed end in a *.mem file, and
// where all end. It knows as much of Badger's format as that takes: entries are
// meta(1) usermeta(1) klen(uvarint) vlen(uvarint) expires(uvarint) key value
// crc32c(4), and keys end with the inverted version.
func unsynced(path string, flushed uint64) (safe, end int64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	safe, end = memHeaderBytes, memHeaderBytes
	for end+2 < int64(len(b)) {
		at := end + 2
		var lens [3]uint64
		for i := range lens {
			v, n := binary.Uvarint(b[at:])
			if n <= 0 {
				return safe, end, nil
			}
			lens[i], at = v, at+int64(n)
		}
		if lens[0] <= 8 || lens[0] > 1<<16 || lens[1] > 1<<30 ||
			at+int64(lens[0]+lens[1])+crc32.Size > int64(len(b)) {
			return safe, end, nil
		}
		key := b[at : at+int64(lens[0])]
		at += int64(lens[0] + lens[1])
		sum := crc32.Checksum(b[end:at], crc32.MakeTable(crc32.Castagnoli))
		if sum != binary.BigEndian.Uint32(b[at:]) {
			return safe, end, nil
		}
		end = at + crc32.Size
		seq, known := entrySeq(b[at-int64(lens[1]):at], key)
		if known && seq <= flushed {
			safe = end
		}
	}
	return safe, end, nil
}

// entrySeq is the commit an entry belongs to. The entry that closes a commit
// has a version of its own and names the commit as its value.
func entrySeq(value, key []byte) (seq uint64, known bool) {
	if strings.HasPrefix(string(key), "!badger!txn") {
		seq, err := strconv.ParseUint(string(value), 10, 64)
		return seq, err == nil
	}
	return math.MaxUint64 - binary.BigEndian.Uint64(key[len(key)-8:]), true
}

// tear loses something of the bytes from safe to end.
func tear(path string, safe, end int64, r *rand.Rand) (what string, err error) {
	at := safe + r.Int64N(end-safe)
	switch kind := r.IntN(8); {
	case kind == 0:
		return "all was kept", nil
	case kind == 1 && safe == memHeaderBytes:
		return "the file was lost", os.Remove(path)
	case kind == 2 && safe == memHeaderBytes:
		return "the content was lost", os.Truncate(path, 0)
	case kind <= 3:
		return fmt.Sprintf("cut off after %d", at-safe), os.Truncate(path, at)
	case kind == 4:
		return fmt.Sprintf("a page lost after %d", at-safe), overwrite(path, at, min(end-at, 4096))
	case kind == 5:
		return "all of it lost", overwrite(path, safe, end-safe)
	}
	return fmt.Sprintf("lost after %d", at-safe), overwrite(path, at, end-at)
}

// overwrite writes n zeros.
func overwrite(path string, from, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(io.NewOffsetWriter(f, from))
	_, err = w.Write(make([]byte, n))
	return errors.Join(err, w.Flush(), f.Close())
}
