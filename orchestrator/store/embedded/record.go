package embedded

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// The buckets of the file, and the one key of the second.
const (
	bucketKV   = "kv"   // key → record
	bucketMeta = "meta" // keyHead → head
	keyHead    = "head"
)

// A record is what the file holds for one key: revision (8 bytes), CRC32C (4 bytes) and the value, big
// endian. The checksum covers the key too, so that a record under another key is found out.
const recordHeader = 12

var errRecord = errors.New("the record does not match its checksum")

// checksum is the CRC32C of a record.
func checksum(key []byte, revision uint64, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // computed once by the library
	var rev [8]byte
	binary.BigEndian.PutUint64(rev[:], revision)
	sum := crc32.Update(0, table, rev[:])
	sum = crc32.Update(sum, table, key)
	return crc32.Update(sum, table, value)
}

// encodeRecord returns the stored form of a value and its checksum.
func encodeRecord(key []byte, revision uint64, value []byte) ([]byte, uint32) {
	out := make([]byte, recordHeader+len(value))
	sum := checksum(key, revision, value)
	binary.BigEndian.PutUint64(out, revision)
	binary.BigEndian.PutUint32(out[8:], sum)
	copy(out[recordHeader:], value)
	return out, sum
}

// decodeRecord checks a stored record. The value it returns is a part of raw.
func decodeRecord(key, raw []byte) (revision uint64, sum uint32, value []byte, err error) {
	if len(raw) < recordHeader {
		return 0, 0, nil, errRecord
	}
	revision, sum, value = binary.BigEndian.Uint64(raw), binary.BigEndian.Uint32(raw[8:]), raw[recordHeader:]
	if revision == 0 || sum != checksum(key, revision, value) {
		return 0, 0, nil, errRecord
	}
	return revision, sum, value, nil
}

// head is the summary of the whole content. It changes with every transaction, and a full check must
// arrive at the same, so that records that vanish or come back whole are found out as well.
type head struct {
	Commit   uint64 // number of the file's transaction that wrote it; an older tree under a newer meta page has another
	Revision uint64 // of the last transaction
	Count    uint64 // of records
	Sum      uint64 // of the records' checksums, modulo 2^64
}

// headVersion is the first byte of a stored head and names the format of the file.
const headVersion = 1

const headSize = 1 + 4*8 + 4

func (h *head) add(sum uint32)    { h.Count++; h.Sum += uint64(sum) }
func (h *head) remove(sum uint32) { h.Count--; h.Sum -= uint64(sum) }

func (h head) encode() []byte {
	out := make([]byte, 0, headSize)
	out = append(out, headVersion)
	out = binary.BigEndian.AppendUint64(out, h.Commit)
	out = binary.BigEndian.AppendUint64(out, h.Revision)
	out = binary.BigEndian.AppendUint64(out, h.Count)
	out = binary.BigEndian.AppendUint64(out, h.Sum)
	return binary.BigEndian.AppendUint32(out, crc32.Checksum(out, crc32.MakeTable(crc32.Castagnoli)))
}

func decodeHead(raw []byte) (head, error) {
	if len(raw) != headSize || raw[0] != headVersion {
		return head{}, errors.New("the summary is missing or of an unknown format")
	}
	body := raw[:headSize-4]
	if binary.BigEndian.Uint32(raw[headSize-4:]) != crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) {
		return head{}, errors.New("the summary does not match its checksum")
	}
	return head{
		Commit:   binary.BigEndian.Uint64(body[1:]),
		Revision: binary.BigEndian.Uint64(body[9:]),
		Count:    binary.BigEndian.Uint64(body[17:]),
		Sum:      binary.BigEndian.Uint64(body[25:]),
	}, nil
}
