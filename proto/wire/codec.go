package wire

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec named "proto"
	"google.golang.org/grpc/mem"

	kvpb "github.com/ridgekv/ridge/proto/ridge/kv/v1"
)

// standard is gRPC's own protobuf codec.
var standard = encoding.GetCodecV2("proto")

// Codec is gRPC's protobuf codec with a shorter way for the types of this
// package. Its name is that of the original, so a peer sees no difference.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name implements encoding.CodecV2.
func (Codec) Name() string { return standard.Name() }

// Marshal implements encoding.CodecV2.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Frame:
		return m.give(), nil
	case Responses:
		return m.marshal()
	}
	return standard.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Frame:
		m.take(data)
		return nil
	case *Requests:
		return m.unmarshal(data.Materialize())
	}
	return standard.Unmarshal(data, v)
}

// Frame is a whole message as bytes. Only Codec can carry it.
type Frame struct {
	buffer mem.Buffer
}

// Bytes is the message. It must not be used after Free.
func (f *Frame) Bytes() []byte { return f.buffer.ReadOnlyData() }

// Free gives the memory of a received frame back.
func (f *Frame) Free() {
	if f.buffer != nil {
		f.buffer.Free()
		f.buffer = nil
	}
}

// give hands the memory to gRPC, which frees it.
func (f *Frame) give() mem.BufferSlice {
	b := f.buffer
	f.buffer = nil
	return mem.BufferSlice{b}
}

func (f *Frame) take(data mem.BufferSlice) {
	f.Free()
	f.buffer = data.MaterializeToBuffer(&messages)
}

// newBuffer returns an empty slice of at least n bytes of capacity from the pool,
// and the function that makes a buffer of what was appended to it.
func newBuffer(n int) (b []byte, done func([]byte) mem.Buffer) {
	p := messages.Get(n)
	return (*p)[:0], func(b []byte) mem.Buffer {
		if len(b) > n {
			panic(fmt.Sprintf("wire: %d bytes in a buffer of %d", len(b), n))
		}
		*p = b
		return mem.NewBuffer(p, &messages)
	}
}

// Requests is a StreamRequest to be received. With Codec its requests share the
// memory of the message, which nobody else uses; with any other codec it is the
// embedded message.
type Requests struct {
	*kvpb.StreamRequest
	// SizeBytes is the length of the message, which each of its requests keeps in
	// memory; 0 with another codec.
	SizeBytes int
}

// Responses is a StreamResponse to be sent.
type Responses struct{ *kvpb.StreamResponse }
