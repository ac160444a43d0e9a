// Package wire turns the messages of KVService.Stream into bytes and back
// without reflection: the protobuf wire format, so that any gRPC peer
// understands them. Requests for one key (Get, Put, Delete), which come by the
// hundred in one message, and those for many rows have code of their own;
// everything else, and whatever looks unusual, goes through the protobuf library.
// A store encodes the rows of a scan where it finds them (AppendScanRow), and a
// client decodes them into one slice (ScanAnswer): neither has an object for each.
//
// Law: what this package decodes is what the protobuf library decodes of the
// same bytes (TestSameAsProtobuf, FuzzRequests, FuzzAnswer), unless a message
// holds more requests than anybody sends: it is refused before memory is taken.
package wire
