package iscsi

import (
	"context"
	"encoding/binary"
	"math"

	"rerack.dev/rerack/internal/fault"
)

// largest is how much one command reads or writes, in bytes. Every target takes it in one burst, or asks
// for it in a few.
const largest = 256 << 10

// capacity16 asks with READ CAPACITY (16) (SBC-3 section 5.16), for units of more than 2^32 blocks.
func (s *Session) capacity16(ctx context.Context, lun uint16) (blocks uint64, size int, err error) {
	cdb := make([]byte, 16)
	cdb[0], cdb[1] = scsiServiceIn16, 0x10
	binary.BigEndian.PutUint32(cdb[10:], 32)
	got, err := s.command(ctx, "read capacity", lun, cdb, nil, 32)
	if err != nil {
		return 0, 0, err
	}
	if len(got) < 12 {
		return 0, 0, fault.Wrap(malformed("a capacity of %d bytes", len(got)), "read capacity", s.where)
	}
	last := binary.BigEndian.Uint64(got)
	if last == math.MaxUint64 {
		return 0, 0, fault.Wrap(malformed("a capacity of 2^64 blocks"), "read capacity", s.where)
	}
	return last + 1, int(min(binary.BigEndian.Uint32(got[8:]), 1<<30)), nil
}

// rw is a READ or WRITE command: the 10-byte form as long as the address fits into it.
func rw(op10, op16 byte, lba uint64, blocks int) []byte {
	if lba <= math.MaxUint32-0xffff && blocks <= 0xffff {
		return rw10(op10, uint32(lba), blocks)
	}
	cdb := make([]byte, 16)
	cdb[0] = op16
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], uint32(blocks))
	return cdb
}

// each calls do for the pieces of whole blocks that p at byte off is transferred in.
func (s *Session) each(ctx context.Context, lun uint16, p []byte, off int64, do func(lba uint64, blocks int, piece []byte) error) error {
	size, err := s.size(ctx, lun)
	if err != nil {
		return err
	}
	if off < 0 || off%int64(size) != 0 || len(p)%size != 0 {
		return fault.Newf(fault.Invalid, "%d bytes at %d are no whole blocks of %d", len(p), off, size)
	}
	step := largest / size * size
	for at := 0; at < len(p); at += step {
		piece := p[at:min(at+step, len(p))]
		if err := do(uint64(off+int64(at))/uint64(size), len(piece)/size, piece); err != nil {
			return err
		}
	}
	return nil
}

// WriteAt writes p, whole blocks, at byte off, in as many commands as it takes. A nil error means that the
// target has it, if only in its cache: see Sync.
func (s *Session) WriteAt(ctx context.Context, lun uint16, p []byte, off int64) error {
	return s.each(ctx, lun, p, off, func(lba uint64, blocks int, piece []byte) error {
		_, err := s.command(ctx, "write", lun, rw(scsiWrite10, scsiWrite16, lba, blocks), piece, 0)
		return err
	})
}

// ReadAt fills p, whole blocks, from byte off on.
func (s *Session) ReadAt(ctx context.Context, lun uint16, p []byte, off int64) error {
	return s.each(ctx, lun, p, off, func(lba uint64, blocks int, piece []byte) error {
		got, err := s.command(ctx, "read", lun, rw(scsiRead10, scsiRead16, lba, blocks), nil, len(piece))
		if err == nil && copy(piece, got) != len(piece) {
			err = fault.Wrap(malformed("%d bytes of %d", len(got), len(piece)), "read", s.where)
		}
		return err
	})
}

// Sync makes everything written durable at the target: SYNCHRONIZE CACHE (10) over the whole unit (SBC-3
// section 5.22).
func (s *Session) Sync(ctx context.Context, lun uint16) error {
	_, err := s.command(ctx, "synchronize cache", lun, []byte{scsiSyncCache10, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, 0)
	return err
}
