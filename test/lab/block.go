package lab

import (
	"bytes"
	"encoding/json"

	"rerack.dev/rerack/internal/fault"
)

// blockSize is what a workload writes at once: one logical block.
const blockSize = 512

var blockMagic = []byte("RERACK LAB WRITE\n")

// stamp is what a workload writes to its volumes, so that whoever reads the block knows who wrote it.
type stamp struct {
	Machine  string `json:"machine"`
	VM       string `json:"vm,omitempty"`
	Workload string `json:"workload"`
	Epoch    uint64 `json:"epoch"`
	Sequence uint64 `json:"sequence"`
}

// block renders the stamp into one zero-padded block.
func (s stamp) block() ([]byte, error) {
	j, err := json.Marshal(s)
	if err != nil {
		return nil, fault.Wrap(err, "render a block", s.Workload)
	}
	if len(blockMagic)+len(j) > blockSize {
		return nil, fault.Newf(fault.Invalid, "the names of %s on %s do not fit into a block", s.Workload, s.Machine)
	}
	b := make([]byte, blockSize)
	copy(b[copy(b, blockMagic):], j)
	return b, nil
}

// readStamp finds the stamp in a block; ok is false for data of somebody else.
func readStamp(b []byte) (s stamp, ok bool) {
	if len(b) < blockSize || !bytes.HasPrefix(b, blockMagic) {
		return stamp{}, false
	}
	b = bytes.TrimRight(b[len(blockMagic):blockSize], "\x00")
	if json.Unmarshal(b, &s) != nil || s.Machine == "" || s.Workload == "" {
		return stamp{}, false
	}
	return s, true
}
