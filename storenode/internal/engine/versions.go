package engine

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/dgraph-io/badger/v4"
	logpb "github.com/ridgekv/ridge/proto/ridge/log/v1"

	"github.com/ridgekv/ridge/proto/keys"
)

// VersionRow is one version of one key, in the form that an image carries.
// Its memory is its own.
type VersionRow struct {
	Kind       logpb.ImageKind
	Key        []byte
	EncodedRow []byte
	DeleteMark bool
}

// Of a key with more versions than this, or larger ones, the versions are
// read in a second pass that needs no memory for all of them.
const (
	hotKeyVersions  = 4096
	hotKeySizeBytes = 4 << 20
)

var errErasedUnderImage = errors.New("a row was erased under a range image")

// Versions yields all that a range image of s needs: keys ascending, the
// versions of a key oldest first, delete marks included. What lies below the
// floor of a pinned view, so that no read may ask for it, is left out.
func (v View) Versions(s Slice) iter.Seq2[VersionRow, error] {
	return func(yield func(VersionRow, error) bool) {
		release, err := v.e.pins.hold(v.seq)
		if err != nil {
			yield(VersionRow{}, err)
			return
		}
		defer release()
		for _, kind := range []logpb.ImageKind{
			logpb.ImageKind_IMAGE_KIND_DATA,
			logpb.ImageKind_IMAGE_KIND_LOCK,
			logpb.ImageKind_IMAGE_KIND_TXN,
		} {
			b := boundsOf(imageKinds[kind], s.Extent, s.Span)
			r := &versionReader{v: v, kind: kind, b: b, pos: b.lo}
			for !r.ends {
				if err := r.readChunk(); err != nil {
					yield(VersionRow{}, err)
					return
				}
				for _, row := range r.rows {
					if !yield(row, nil) {
						return
					}
				}
			}
		}
	}
}

// versionReader reads one kind of one slice, chunk by chunk.
type versionReader struct {
	v    View
	kind logpb.ImageKind
	b    bounds
	pos  []byte
	ends bool

	rows      []VersionRow
	sizeBytes int
	// hot is a key whose versions are read one chunk after the other;
	// hotSince is the newest that was read.
	hot      []byte
	hotSince uint64
}

func (r *versionReader) readChunk() error {
	if err := r.v.e.enter(); err != nil {
		return err
	}
	defer r.v.e.leave()
	r.rows, r.sizeBytes = nil, 0
	read := r.readKeys
	if r.hot != nil {
		read = r.readHot
	}
	if err := read(); err != nil {
		return fmt.Errorf("engine: read versions: %w", err)
	}
	return nil
}

// readKeys collects key by key. Badger gives the versions newest first.
func (r *versionReader) readKeys() error {
	it := r.v.txn.NewIterator(badger.IteratorOptions{Prefix: r.b.prefix, AllVersions: true})
	defer it.Close()
	var g versionGroup
	for it.Seek(r.pos); it.Valid(); it.Next() {
		item := it.Item()
		if bytes.Compare(item.Key(), r.b.hi) >= 0 {
			break
		}
		if !bytes.Equal(item.Key(), g.key) {
			if r.settle(&g); r.sizeBytes >= chunkSizeBytes {
				return nil
			}
			g = versionGroup{key: bytes.Clone(item.Key())}
		}
		if err := g.add(r, item); err != nil {
			return err
		}
		if len(g.rows) > hotKeyVersions || g.sizeBytes > hotKeySizeBytes {
			r.hot, r.hotSince = g.key, 0
			return nil
		}
	}
	r.settle(&g)
	r.ends = true
	return nil
}

// settle moves a whole key into the chunk, oldest version first.
func (r *versionReader) settle(g *versionGroup) {
	if g.key == nil {
		return
	}
	slices.Reverse(g.rows)
	r.rows = append(r.rows, g.rows...)
	r.sizeBytes += g.sizeBytes
	r.pos = keys.Next(g.key)
}

// versionGroup is one key with its versions, newest first.
type versionGroup struct {
	key       []byte
	rows      []VersionRow
	sizeBytes int
	// covered: older versions are out of reach for any read.
	covered bool
}

func (g *versionGroup) add(r *versionReader, item *badger.Item) error {
	if g.covered {
		return nil
	}
	row, erased, err := r.row(item)
	if err != nil || erased {
		g.covered = erased
		return err
	}
	if r.v.floor != 0 {
		t, err := rowCommitTS(row.EncodedRow)
		if err != nil {
			return err
		}
		if g.covered = t <= r.v.floor; g.covered && row.DeleteMark {
			return nil
		}
	}
	g.rows = append(g.rows, row)
	g.sizeBytes += len(row.Key) + len(row.EncodedRow)
	return nil
}

// readHot reads the next versions of one key in the order of their age.
func (r *versionReader) readHot() error {
	it := r.v.txn.NewKeyIterator(r.hot, badger.IteratorOptions{
		Reverse: true, SinceTs: r.hotSince,
	})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		row, erased, err := r.row(it.Item())
		if err != nil {
			return err
		}
		if erased {
			return errErasedUnderImage
		}
		r.rows = append(r.rows, row)
		r.hotSince = it.Item().Version()
		r.sizeBytes += len(row.Key) + len(row.EncodedRow)
		if r.sizeBytes >= chunkSizeBytes || len(r.rows) >= hotKeyVersions {
			return nil
		}
	}
	r.pos, r.hot = keys.Next(r.hot), nil
	return nil
}

func (r *versionReader) row(item *badger.Item) (row VersionRow, erased bool, err error) {
	mark := item.ExpiresAt() == deleteMarkExpiry
	if !mark && item.IsDeletedOrExpired() {
		return VersionRow{}, true, nil
	}
	row = VersionRow{
		Kind: r.kind, DeleteMark: mark,
		Key: bytes.Clone(item.Key()[extentSizeBytes:]),
	}
	row.EncodedRow, err = item.ValueCopy(nil)
	return row, false, err
}
