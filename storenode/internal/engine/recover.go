package engine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// recoverPrefix makes dir an exact prefix of its commits, before Badger sees
// it, and returns the newest seq of that prefix.
//
// Tables named in the MANIFEST are a prefix: memtables are written out in
// order, and durably. The *.mem files go on from there, each one a prefix of
// what was written to it. So the only holes are between two files: a file
// that does not go on where the ones before it end is deleted, with all later
// ones.
func recoverPrefix(o Options) (Seq, error) {
	seq, err := cutToPrefix(o)
	if err != nil {
		return 0, fmt.Errorf("engine: recover %s: %w", o.Dir, err)
	}
	return seq, nil
}

func cutToPrefix(o Options) (Seq, error) {
	if err := removeEmpty(o.Dir, ".vlog", memSuffix); err != nil {
		return 0, err
	}
	if err := refuseLostManifest(o.Dir); err != nil {
		return 0, err
	}
	have, err := newestInTables(o)
	if err != nil {
		return 0, err
	}
	files, err := memFiles(o.Dir)
	if err != nil {
		return 0, err
	}
	for i, n := range files {
		log, err := readMemFile(memPath(o.Dir, n))
		if err != nil {
			return 0, err
		}
		if log.commits == 0 {
			continue
		}
		if log.first > have+1 {
			o.Logger.Warn("cut to an exact prefix of the commits", "op", "recover",
				"prefix", have, "lost from", log.first, "files", len(files)-i)
			return have, removeFrom(o.Dir, files[i:])
		}
		if need := log.arenaBytes + log.arenaBytes/64; need > arenaBytes(o.MemTableSizeBytes) {
			return 0, fmt.Errorf("%s needs a memtable of %d bytes: memtable_size must not be"+
				" lowered to %d after an unclean stop; start once with the old size",
				memPath(o.Dir, n), need, o.MemTableSizeBytes)
		}
		have = max(have, log.last)
	}
	return have, nil
}

// removeEmpty removes files of no length, which a crash leaves between their
// creation and their growth; Badger refuses to open them.
func removeEmpty(dir string, suffixes ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, en := range entries {
		for _, suffix := range suffixes {
			if !strings.HasSuffix(en.Name(), suffix) {
				continue
			}
			info, err := en.Info()
			if err != nil {
				return err
			}
			if info.Size() > 0 {
				continue
			}
			if err := os.Remove(filepath.Join(dir, en.Name())); err != nil {
				return err
			}
		}
	}
	return syncDir(dir)
}

// refuseLostManifest refuses data without a MANIFEST. Badger makes that durable
// before any other file, so no crash leaves data without it; and Badger deletes
// every table that the MANIFEST does not name.
func refuseLostManifest(dir string) error {
	_, err := os.Stat(filepath.Join(dir, badger.ManifestFilename))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, en := range entries {
		if ext := filepath.Ext(en.Name()); ext == ".sst" || ext == memSuffix {
			return fmt.Errorf("the file %s is missing beside %s: bring it back, or remove the"+
				" whole store to have its replicas rebuilt", badger.ManifestFilename, en.Name())
		}
	}
	return nil
}

// removeFrom deletes the files, highest number first, so that a crash in
// between leaves a directory that is cut the same way again.
func removeFrom(dir string, numbers []int) error {
	for i := len(numbers) - 1; i >= 0; i-- {
		if err := os.Remove(memPath(dir, numbers[i])); err != nil {
			return err
		}
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// newestInTables is the greatest version in the tables of the MANIFEST.
func newestInTables(o Options) (Seq, error) {
	tables, err := manifestTables(o)
	if err != nil {
		return 0, err
	}
	newest := Seq(0)
	for id, m := range tables {
		version, err := newestInTable(o, id, m)
		if err != nil {
			return 0, fmt.Errorf("table %d: %w", id, err)
		}
		newest = max(newest, version)
	}
	return newest, nil
}

func manifestTables(o Options) (map[uint64]badger.TableManifest, error) {
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, 0, o.badger())
	if err != nil {
		return nil, fmt.Errorf("MANIFEST: %w", err)
	}
	return manifest.Tables, nil
}

func newestInTable(o Options, id uint64, m badger.TableManifest) (newest Seq, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("corrupt: %v", r)
		}
	}()
	f, err := z.OpenMmapFile(table.NewFilename(id, o.Dir), os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	t, err := table.OpenTable(f, tableOptions(o, m))
	if err != nil {
		return 0, err
	}
	return Seq(t.MaxVersion()), t.Close(-1)
}

func tableOptions(o Options, m badger.TableManifest) table.Options {
	return table.Options{
		ReadOnly: true, BlockSize: o.badger().BlockSize, Compression: m.Compression,
	}
}

// memLog is what a *.mem file holds.
type memLog struct {
	commits     int
	first, last Seq
	// endBytes is where the last whole commit ends.
	endBytes int64
	// arenaBytes is what its entries take in a memtable, whose nodes have random
	// heights: about that.
	arenaBytes int64
}

// How Badger writes a *.mem: a header, then entries
// meta(1) usermeta(1) klen(uvarint) vlen(uvarint) expires(uvarint) key value
// crc32c(4). Keys end with the inverted version. The entries of a transaction
// carry metaTxn and are closed by one with metaFinTxn.
const (
	memHeaderBytes = 20
	metaTxn        = 1 << 6
	metaFinTxn     = 1 << 7
	maxMemKeyBytes = 1 << 16
	versionBytes   = 8
	// nodeBytes is what an entry takes in a memtable beyond key and value: 16 for
	// a node, 7 for its alignment, 4 for each of 1.5 levels, 3 beside the value.
	nodeBytes = 32
)

// readMemFile reads the commits of a *.mem file up to its first tear. It must
// agree with Badger's own reading of the file; assertPrefix checks that.
func readMemFile(path string) (memLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return memLog{}, err
	}
	defer f.Close()
	if _, err := f.Seek(memHeaderBytes, io.SeekStart); err != nil {
		return memLog{}, err
	}
	log, err := readMemLog(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return memLog{}, fmt.Errorf("%s: %w", path, err)
	}
	return log, nil
}

var errTorn = errors.New("torn entry")

func readMemLog(r *bufio.Reader) (memLog, error) {
	var log memLog
	var open Seq // The transaction being read; 0 when between two.
	var openBytes int64
	in := memReader{r: r, table: crc32.MakeTable(crc32.Castagnoli)}
	for {
		en, err := in.next()
		switch {
		case errors.Is(err, errTorn):
			return log, nil
		case err != nil:
			return log, err
		}
		switch {
		case en.meta&metaTxn != 0:
			if open == 0 {
				open = en.version
			}
			if open != en.version {
				return log, nil
			}
			openBytes += en.arenaBytes
		case en.meta&metaFinTxn != 0:
			seq, err := strconv.ParseUint(string(en.value), 10, 64)
			if err != nil || Seq(seq) != open {
				return log, nil
			}
			if log.commits++; log.commits == 1 {
				log.first = open
			} else if open != log.last+1 {
				return log, fmt.Errorf("commit %d follows commit %d", open, log.last)
			}
			log.last, open = open, 0
			log.endBytes = memHeaderBytes + in.read
			log.arenaBytes, openBytes = log.arenaBytes+openBytes, 0
		default:
			// Nobody here writes outside a transaction.
			return log, fmt.Errorf("an entry of version %d outside a commit", en.version)
		}
	}
}

type memEntry struct {
	meta       byte
	version    Seq
	value      []byte
	arenaBytes int64
}

type memReader struct {
	r     *bufio.Reader
	table *crc32.Table
	sum   uint32
	buf   []byte
	read  int64
}

// ReadByte reads a byte of an entry's header.
func (m *memReader) ReadByte() (byte, error) {
	b, err := m.r.ReadByte()
	if err == nil {
		m.sum = crc32.Update(m.sum, m.table, []byte{b})
		m.read++
	}
	return b, err
}

// next reads an entry; errTorn at the end of what was written.
func (m *memReader) next() (memEntry, error) {
	m.sum = 0
	var en memEntry
	var klen, vlen uint64
	meta, err := m.ReadByte()
	if err == nil {
		_, err = m.ReadByte() // user meta
	}
	for _, v := range []*uint64{&klen, &vlen, new(uint64)} {
		if err == nil {
			*v, err = binary.ReadUvarint(m)
		}
	}
	if err != nil {
		return en, tornOr(err)
	}
	if klen <= versionBytes || klen > maxMemKeyBytes || vlen > math.MaxUint32 {
		return en, errTorn
	}
	n := int(klen + vlen)
	if n+crc32.Size > cap(m.buf) {
		if n > 1<<30 {
			return en, errTorn
		}
		m.buf = make([]byte, 2*n+crc32.Size)
	}
	buf := m.buf[:n+crc32.Size]
	if _, err := io.ReadFull(m.r, buf); err != nil {
		return en, tornOr(err)
	}
	if crc32.Update(m.sum, m.table, buf[:n]) != binary.BigEndian.Uint32(buf[n:]) {
		return en, errTorn
	}
	m.read += int64(len(buf))
	en.meta, en.value = meta, buf[klen:n]
	en.version = Seq(math.MaxUint64 - binary.BigEndian.Uint64(buf[klen-versionBytes:klen]))
	en.arenaBytes = int64(n) + nodeBytes
	return en, nil
}

// tornOr takes ends of file and overlong numbers for a tear.
func tornOr(err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		return err
	}
	return errTorn
}

// arenaBytes is what Badger allots to a memtable.
func arenaBytes(memTableSizeBytes int64) int64 {
	batch := memTableSizeBytes * 15 / 100
	return memTableSizeBytes + batch + batch/int64(skl.MaxNodeSize)*int64(skl.MaxNodeSize)
}
