package members

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// identityFile lies in the directory of a node, beside its Raft log.
	identityFile   = "MEMBER"
	identityFormat = 1
)

// Identity is what one directory is. It is written whole, and before whatever
// rests on it: a crash at any point leaves a directory that goes on where it was.
type Identity struct {
	Format int `json:"format"`
	// DirectoryID is drawn once, with the directory.
	DirectoryID uint64 `json:"directory_id"`
	ClusterID   uint64 `json:"cluster_id,omitempty"`
	// MemberID is 0 while a node that joins has not been given one.
	MemberID     uint64 `json:"member_id,omitempty"`
	DeploymentID uint64 `json:"deployment_id,omitempty"`
	GRPCAddress  string `json:"grpc_address"`
	RaftAddress  string `json:"raft_address"`
	// Members are the Raft addresses that the group began with, if this node began
	// it. Nobody else has them, so nobody else can begin it again.
	Members map[uint64]string `json:"members,omitempty"`
	// Seeds are gRPC addresses of others, as last known.
	Seeds []string `json:"seeds,omitempty"`
	// Joined: it was admitted to a group that was there.
	Joined bool `json:"joined,omitempty"`
	// Started: its Raft log has been here. If it is not any more, it is lost.
	Started bool `json:"started,omitempty"`
	// Settled: the log on disk says that it has a vote.
	Settled bool `json:"settled,omitempty"`
	// Removed is for ever.
	Removed bool `json:"removed,omitempty"`
}

// Load reads the identity of dir; nil if it has none.
func Load(dir string) (*Identity, error) {
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("members: %w", err)
	}
	var i Identity
	if err := json.Unmarshal(b, &i); err != nil {
		return nil, fmt.Errorf("members: %s cannot be read: %w", filepath.Join(dir, identityFile), err)
	}
	if i.Format != identityFormat || i.DirectoryID == 0 {
		return nil, fmt.Errorf("members: %s has format %d: it was written by a newer version",
			filepath.Join(dir, identityFile), i.Format)
	}
	return &i, nil
}

// Save replaces the identity of dir whole, and returns when it is on disk.
func (i *Identity) Save(dir string) error {
	i.Format = identityFormat
	b, err := json.MarshalIndent(i, "", "  ")
	if err == nil {
		err = os.MkdirAll(dir, 0o750)
	}
	if err == nil {
		err = replace(dir, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("members: keep the identity: %w", err)
	}
	return nil
}

func replace(dir string, b []byte) error {
	path := filepath.Join(dir, identityFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// HasLog reports whether dir holds what could be a Raft log: a directory.
func HasLog(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("members: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != "lost+found" {
			return true, nil
		}
	}
	return false, nil
}

// NewDirectoryID draws the name of a directory; it is never 0.
func NewDirectoryID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])>>1 | 1
}
