// Package capture is the protocol between the server and the environment that copies a machine's local disk
// into a volume, and the copying itself.
//
// The environment is booted over the network and asks for its Orders. It reads the disk chunk by chunk,
// writes each to the volume, and reports the chunks' digests when the volume has them on disk; what is
// reported is durable at the server, and whoever comes next, after whatever crash, goes on behind it. Then
// it reads the volume back from its beginning: the server compares digests, and the environment makes the
// digest of the whole disk on the way.
package capture

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Limits of the protocol.
const (
	MinChunk   = 4 << 10 // bytes
	MaxChunk   = 64 << 20
	MaxDigests = 256     // in one report
	MaxSize    = 1 << 50 // bytes of a disk
	maxText    = 1000    // bytes of a failure's words
	maxHash    = 256     // bytes of the state of a hash
)

// Stage is how far a capture has come.
type Stage string

const (
	Copy   Stage = "copy"   // from the disk to the volume
	Verify Stage = "verify" // the volume is read back
	Done   Stage = "done"
)

// Disk names a disk by what its maker wrote into it; exactly one is set.
type Disk struct{ WWN, Serial string }

var (
	wwnForm    = regexp.MustCompile(`^[0-9a-f]{16}([0-9a-f]{16})?$`)
	serialForm = regexp.MustCompile(`^[A-Za-z0-9._:+/-][A-Za-z0-9 ._:+/-]{0,62}$`)
)

// ParseDisk reads wwn:5000c500a1b2c3d4 (0x, naa. and eui. in front are allowed) or serial:S3Z8NB0K.
func ParseDisk(s string) (Disk, error) {
	kind, value, _ := strings.Cut(s, ":")
	switch value = strings.TrimSpace(value); {
	case kind == "wwn" && wwnForm.MatchString(plainWWN(value)):
		return Disk{WWN: plainWWN(value)}, nil
	case kind == "serial" && serialForm.MatchString(value):
		return Disk{Serial: value}, nil
	}
	return Disk{}, &fault.Error{Kind: fault.Invalid, What: "name of a disk", Evidence: fmt.Sprintf("%.100q", s),
		Next: "write wwn: and 16 or 32 hex digits, or serial: and its serial number"}
}

// plainWWN leaves the digits of a world wide name in one of its usual forms.
func plainWWN(s string) string {
	s = strings.ToLower(s)
	for _, prefix := range []string{"naa.", "eui.", "0x"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return strings.NewReplacer(":", "", "-", "").Replace(s)
}

func (d Disk) String() string {
	if d.WWN != "" {
		return "wwn:" + d.WWN
	}
	return "serial:" + d.Serial
}

// Orders are what an environment is told to do, from where it stands now.
type Orders struct {
	Disk       string   `json:"disk"` // see ParseDisk
	Portals    []string `json:"portals"`
	Target     string   `json:"target"`
	LUN        uint16   `json:"lun"`
	Initiator  string   `json:"initiator"`
	Source     string   `json:"source,omitempty"` // address that the array knows the machine by; used when the machine has it
	User       string   `json:"user,omitempty"`   // CHAP
	Secret     string   `json:"secret,omitempty"`
	ChunkBytes int64    `json:"chunkBytes"`
	Size       int64    `json:"size"` // bytes of the disk as it was first seen; 0: not yet
	State
}

// String hides the secret.
func (o Orders) String() string {
	return fmt.Sprintf("copy disk %s to %s LUN %d at %s", o.Disk, o.Target, o.LUN, strings.Join(o.Portals, ", "))
}

// GoString, Format and LogValue hide the secret.
func (o Orders) GoString() string           { return o.String() }
func (o Orders) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.String()) }
func (o Orders) LogValue() slog.Value       { return slog.StringValue(o.String()) }

// State is where a capture stands: what lies before Next is proven in its stage.
type State struct {
	Stage Stage `json:"stage"`
	Next  int64 `json:"next"` // number of a chunk
	// Hash is the state of the whole disk's digest before Next, as the environment reported it (Verify).
	Hash []byte `json:"hash,omitempty"`
}

// Validate checks orders as an environment does before it follows them. It returns fault.Invalid.
func (o *Orders) Validate() error {
	bad := func(key string, v any) error {
		return &fault.Error{Kind: fault.Invalid, Where: "orders of a capture", What: key, Evidence: fmt.Sprintf("%.100q", fmt.Sprint(v))}
	}
	if _, err := ParseDisk(o.Disk); err != nil {
		return err
	}
	switch {
	case len(o.Portals) == 0 || len(o.Portals) > 64:
		return bad("portals", len(o.Portals))
	case o.Target == "" || o.Initiator == "":
		return bad("target, initiator", o.Target)
	case o.ChunkBytes < MinChunk || o.ChunkBytes > MaxChunk || o.ChunkBytes%MinChunk != 0:
		return bad("chunkBytes", o.ChunkBytes)
	case o.Size < 0 || o.Size > MaxSize:
		return bad("size", o.Size)
	case o.Stage != Copy && o.Stage != Verify && o.Stage != Done:
		return bad("stage", o.Stage)
	case o.Next < 0 || o.Next > Chunks(o.Size, o.ChunkBytes):
		return bad("next", o.Next)
	case len(o.Hash) > maxHash:
		return bad("hash", len(o.Hash))
	}
	return nil
}

// Chunks is how many chunks a disk of size bytes has; the last may be short.
func Chunks(size, chunk int64) int64 { return (size + chunk - 1) / chunk }

// Report is what an environment has done since the last one. Without digests it says that it is alive and
// how large the disk is.
type Report struct {
	Size    int64    `json:"size"`
	Stage   Stage    `json:"stage"`
	First   int64    `json:"first"`             // number of the first chunk reported
	Digests []string `json:"digests,omitempty"` // SHA-256 of each, 64 hex digits
	// Hash is the state of the whole disk's digest behind the last chunk reported; SHA256 the digest itself
	// behind the last chunk of all (Verify).
	Hash    []byte   `json:"hash,omitempty"`
	SHA256  string   `json:"sha256,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// Failure says why an environment cannot go on.
type Failure struct {
	Kind string `json:"kind"` // of package fault
	Text string `json:"text"`
}

// NewFailure is that of an error.
func NewFailure(err error) *Failure {
	text := []byte(err.Error())
	for i, c := range text {
		if c < ' ' || c > '~' {
			text[i] = '.'
		}
	}
	return &Failure{Kind: fault.KindOf(err).String(), Text: string(text[:min(len(text), maxText)])}
}

// Validate checks a report as the server does before it believes it. It returns fault.Invalid.
func (r *Report) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, Where: "report of a capture", What: key, Evidence: why}
	}
	switch {
	case r.Size < 0 || r.Size > MaxSize:
		return bad("size", fmt.Sprint(r.Size))
	case r.Stage != Copy && r.Stage != Verify:
		return bad("stage", fmt.Sprintf("%.20q", r.Stage))
	case r.First < 0 || r.First > MaxSize/MinChunk:
		return bad("first", fmt.Sprint(r.First))
	case len(r.Digests) > MaxDigests:
		return bad("digests", fmt.Sprintf("%d; at most %d", len(r.Digests), MaxDigests))
	case len(r.Hash) > maxHash:
		return bad("hash", fmt.Sprintf("%d bytes; at most %d", len(r.Hash), maxHash))
	case r.SHA256 != "" && !isDigest(r.SHA256):
		return bad("sha256", "want 64 lower-case hex digits")
	}
	for i, d := range r.Digests {
		if !isDigest(d) {
			return bad(fmt.Sprintf("digests[%d]", i), "want 64 lower-case hex digits")
		}
	}
	if f := r.Failure; f != nil {
		if len(f.Text) > maxText || strings.ContainsFunc(f.Text, func(c rune) bool { return c < ' ' || c > '~' }) {
			return bad("failure", fmt.Sprintf("want at most %d printable characters", maxText))
		}
	}
	return nil
}

func isDigest(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil && strings.ToLower(s) == s
}
