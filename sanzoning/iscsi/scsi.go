package iscsi

import (
	"encoding/binary"
	"errors"

	"rerack.dev/rerack/internal/fault"
)

// Operation codes (SPC-4, SBC-3) that the target knows.
const (
	scsiTestUnitReady = 0x00
	scsiRequestSense  = 0x03
	scsiInquiry       = 0x12
	scsiModeSense6    = 0x1a
	scsiCapacity10    = 0x25
	scsiRead10        = 0x28
	scsiWrite10       = 0x2a
	scsiSyncCache10   = 0x35
	scsiRead16        = 0x88
	scsiWrite16       = 0x8a
	scsiServiceIn16   = 0x9e // service action 0x10: READ CAPACITY (16)
	scsiReportLUNs    = 0xa0
)

const (
	statusGood        = 0x00
	statusCheck       = 0x02
	statusBusy        = 0x08
	statusReservation = 0x18
	statusFull        = 0x28

	senseNotReady  = 0x2
	senseMedium    = 0x3
	senseIllegal   = 0x5
	senseAttention = 0x6
	senseProtect   = 0x7

	ascInvalidOp   = 0x20
	ascOutOfRange  = 0x21
	ascInvalidCDB  = 0x24
	ascNoLUN       = 0x25
	ascProtected   = 0x27
	ascNotReady    = 0x04
	ascWriteFailed = 0x0c
)

const (
	typeDisk       = 0x00
	typeController = 0x0c
	typeNone       = 0x7f // peripheral qualifier 3: no such unit
	maxTransfer    = 1 << 20
)

// Device is a block device behind a LUN. Its methods are called with whole blocks within its size; by
// is the initiator of the session. An error of kind Busy or Unsafe makes the unit not ready or write
// protected; any other one is a medium error.
type Device interface {
	Blocks() uint64 // in blocks of BlockSize bytes
	Serial() string // ASCII, at most 32 bytes, never changes: a host knows its disk by it (hazard H28)
	ReadAt(by Identity, p []byte, off int64) error
	WriteAt(by Identity, p []byte, off int64) error
}

func illegal(asc byte) error { return &senseError{status: statusCheck, key: senseIllegal, asc: asc} }

// unit is one LUN as one session sees it.
type unit struct {
	device Device // nil: the controller at LUN 0
	luns   []uint16
	by     Identity
	found  bool
}

// task is a decoded command.
type task struct {
	op     byte
	lba    uint64
	blocks uint64
	write  bool
	odd    bool // asks for protection information, DPO or FUA, which we do not have
}

// decode reads the address and length of the block commands.
func decode(cdb []byte) task {
	t := task{op: cdb[0]}
	switch t.op {
	case scsiRead10, scsiWrite10, scsiSyncCache10:
		t.lba, t.blocks = uint64(binary.BigEndian.Uint32(cdb[2:])), uint64(binary.BigEndian.Uint16(cdb[7:]))
	case scsiRead16, scsiWrite16:
		t.lba, t.blocks = binary.BigEndian.Uint64(cdb[2:]), uint64(binary.BigEndian.Uint32(cdb[10:]))
	}
	t.write = t.op == scsiWrite10 || t.op == scsiWrite16
	t.odd = cdb[1]&0xf8 != 0
	return t
}

// check says whether the unit can take the command, before any data is asked for.
func (u unit) check(t task, length int) error {
	if !u.found && t.op != scsiInquiry && t.op != scsiReportLUNs {
		return illegal(ascNoLUN)
	}
	switch t.op {
	case scsiRead10, scsiRead16, scsiWrite10, scsiWrite16:
		switch {
		case u.device == nil:
			return illegal(ascInvalidOp)
		case t.blocks > u.device.Blocks() || t.lba > u.device.Blocks()-t.blocks:
			return illegal(ascOutOfRange)
		case t.odd || t.blocks*BlockSize > maxTransfer:
			return illegal(ascInvalidCDB)
		case t.write && uint64(length) != t.blocks*BlockSize:
			return illegal(ascInvalidCDB)
		}
	}
	return nil
}

// write stores the data of a write command.
func (u unit) write(t task, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	return deviceError(u.device.WriteAt(u.by, data, int64(t.lba)*BlockSize))
}

// read runs a command without data from the initiator and returns the data for it.
func (u unit) read(t task, cdb []byte) ([]byte, error) {
	switch t.op {
	case scsiTestUnitReady, scsiSyncCache10:
		return nil, nil
	case scsiRequestSense:
		out := fixedSense(0, 0, 0)
		return out[:min(len(out), int(cdb[4]))], nil
	case scsiInquiry:
		out, err := u.inquiry(cdb)
		return out[:min(len(out), int(binary.BigEndian.Uint16(cdb[3:])))], err
	case scsiReportLUNs:
		return cut(u.reportLUNs(), binary.BigEndian.Uint32(cdb[6:])), nil
	case scsiModeSense6:
		out := []byte{3, 0, 0, 0} // header only: no block descriptor, no pages
		return out[:min(len(out), int(cdb[4]))], nil
	case scsiRead10, scsiRead16:
		out := make([]byte, t.blocks*BlockSize)
		if len(out) == 0 {
			return nil, nil
		}
		return out, deviceError(u.device.ReadAt(u.by, out, int64(t.lba)*BlockSize))
	case scsiCapacity10:
		if u.device == nil {
			return nil, illegal(ascInvalidOp)
		}
		out := make([]byte, 8)
		binary.BigEndian.PutUint32(out, uint32(min(u.device.Blocks()-1, 0xffffffff)))
		binary.BigEndian.PutUint32(out[4:], BlockSize)
		return out, nil
	case scsiServiceIn16:
		if u.device == nil || cdb[1]&0x1f != 0x10 {
			return nil, illegal(ascInvalidOp)
		}
		out := make([]byte, 32)
		binary.BigEndian.PutUint64(out, u.device.Blocks()-1)
		binary.BigEndian.PutUint32(out[8:], BlockSize)
		return cut(out, binary.BigEndian.Uint32(cdb[10:])), nil
	}
	return nil, illegal(ascInvalidOp)
}

func cut(b []byte, n uint32) []byte { return b[:min(uint32(len(b)), n)] }

// inquiry answers INQUIRY (SPC-4 section 6.6) and the vital product data pages 0x00, 0x80 and 0x83.
func (u unit) inquiry(cdb []byte) ([]byte, error) {
	kind := byte(typeDisk)
	switch {
	case !u.found:
		kind = typeNone
	case u.device == nil:
		kind = typeController
	}
	if cdb[1]&1 == 0 {
		if cdb[2] != 0 {
			return nil, illegal(ascInvalidCDB)
		}
		out := make([]byte, 36)
		out[0], out[2], out[3], out[4], out[7] = kind, 5, 2, 31, 2 // SPC-3, response format 2, command queuing
		copy(out[8:], "RERACK  VIRTUAL-DISK    0001")
		return out, nil
	}
	if u.device == nil {
		return nil, illegal(ascInvalidCDB)
	}
	serial := u.device.Serial()
	serial = serial[:min(len(serial), 32)]
	page := []byte{kind, cdb[2], 0, 0}
	switch cdb[2] {
	case 0x00:
		page = append(page, 0x00, 0x80, 0x83)
	case 0x80:
		page = append(page, serial...)
	case 0x83:
		id := "RERACK  " + serial
		page = append(page, 0x02, 0x01, 0x00, byte(len(id))) // ASCII, T10 vendor identification
		page = append(page, id...)
	default:
		return nil, illegal(ascInvalidCDB)
	}
	page[3] = byte(len(page) - 4)
	return page, nil
}

func (u unit) reportLUNs() []byte {
	out := make([]byte, 8+8*len(u.luns))
	binary.BigEndian.PutUint32(out, uint32(8*len(u.luns)))
	for i, lun := range u.luns {
		putLUN(out[8+8*i:], lun)
	}
	return out
}

func deviceError(err error) error {
	switch {
	case err == nil:
		return nil
	case fault.Is(err, fault.Busy):
		return &senseError{status: statusCheck, key: senseNotReady, asc: ascNotReady}
	case fault.Is(err, fault.Unsafe):
		return &senseError{status: statusCheck, key: senseProtect, asc: ascProtected}
	}
	return &senseError{status: statusCheck, key: senseMedium, asc: ascWriteFailed}
}

// fixedSense is sense data in fixed format (SPC-4 section 4.5.3).
func fixedSense(key, asc, ascq byte) []byte {
	b := make([]byte, 18)
	b[0], b[2], b[7], b[12], b[13] = 0x70, key, 10, asc, ascq
	return b
}

func asSense(err error) *senseError {
	var se *senseError
	if errors.As(err, &se) {
		return se
	}
	return &senseError{status: statusCheck, key: senseMedium, asc: ascWriteFailed}
}
