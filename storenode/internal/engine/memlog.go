package engine

import (
	"encoding/binary"
	"hash/crc32"
)

// maxRecordHeaderBytes is the longest header of a record in the log of a memtable
// (recover.go), as Badger counts.
const maxRecordHeaderBytes = 22

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordBytes is the most that an entry takes in the log of a memtable.
func recordBytes(en *badgerEntry) int {
	return maxRecordHeaderBytes + len(en.Key) + len(en.Value) + crc32.Size
}

// putRecords writes the records of entries into a log that has room for them and
// for one more header, which it sets to zero; it returns where they end.
//
// The log is a mapped file, so a crash of the process leaves the records up to
// some byte, and a power cut any part of them. Each has its checksum, and a commit
// counts only with the mark at its end, so both are taken for a tear in front of
// this commit; nothing is written behind it before the next start, which makes a new
// file.
func putRecords(log []byte, entries []badgerEntry) int {
	at := 0
	for i := range entries {
		en := &entries[i]
		from := at
		log[at], log[at+1] = en.meta, en.UserMeta
		at += 2
		at += binary.PutUvarint(log[at:], uint64(len(en.Key)))
		at += binary.PutUvarint(log[at:], uint64(len(en.Value)))
		at += binary.PutUvarint(log[at:], en.ExpiresAt)
		at += copy(log[at:], en.Key)
		at += copy(log[at:], en.Value)
		binary.BigEndian.PutUint32(log[at:], crc32.Checksum(log[from:at], castagnoli))
		at += crc32.Size
	}
	clear(log[at : at+maxRecordHeaderBytes])
	return at
}
