package brocade

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"
)

// A zone of ours is called rr_<name>_e<epoch>. FOS zones have no field for data of ours, so the epoch is
// in the name; that also makes every new epoch a new zone, whose predecessor goes in the same transaction.
//
// zoning-name-type in brocade-zone.yang allows 64 characters of [0-9a-zA-Z_^$-] from FOS 9.1 on; older
// switches and interoperable fabrics take letters, digits and underscores only, so no others are used.
const (
	prefix      = "rr_"
	epochMark   = "_e"
	maxName     = 64
	maxDigits   = 20 // of an epoch
	maxKey      = maxName - len(prefix) - len(epochMark) - maxDigits
	hashDigits  = 10
	reservedLen = maxKey - hashDigits - len("_h")
)

// plainName matches names that the device can hold as they are, a dash written as an underscore.
var plainName = regexp.MustCompile(`^[A-Za-z0-9-]{1,` + strconv.Itoa(maxKey) + `}$`)

// Key is how the device spells a zone's stable name. Names of letters, digits and dashes, up to 39 of
// them, read back as they were; others are cut and get a hash, and read back as that.
func Key(name string) string {
	if plainName.MatchString(name) {
		return strings.ReplaceAll(name, "-", "_")
	}
	sum := sha256.Sum256([]byte(name))
	var kept strings.Builder
	for _, c := range []byte(name) {
		if kept.Len() == reservedLen {
			break
		}
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			kept.WriteByte(c)
		} else {
			kept.WriteByte('_')
		}
	}
	return kept.String() + "_h" + hex.EncodeToString(sum[:])[:hashDigits]
}

// ZoneName is the name on the device of a zone at an epoch.
func ZoneName(name string, epoch uint64) string {
	return prefix + Key(name) + epochMark + strconv.FormatUint(epoch, 10)
}

// ParseZoneName is the inverse of ZoneName up to Key: name is what the zone is listed as. ok is false for
// a zone that is not ours.
func ParseZoneName(device string) (name string, epoch uint64, ok bool) {
	rest, found := strings.CutPrefix(device, prefix)
	i := strings.LastIndex(rest, epochMark)
	if !found || i <= 0 {
		return "", 0, false
	}
	digits := rest[i+len(epochMark):]
	epoch, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || strconv.FormatUint(epoch, 10) != digits {
		return "", 0, false
	}
	return strings.ReplaceAll(rest[:i], "_", "-"), epoch, true
}
