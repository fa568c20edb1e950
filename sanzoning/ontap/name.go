package ontap

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var notPlain = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

func safe(s string) string { return notPlain.ReplaceAllString(s, "_") }

// GroupName is our igroup's name for a LUN: igroup names have at most 96 characters of a small set, so
// the LUN's path is kept readable and made unique by its hash.
func GroupName(volume string) string {
	h := sha256.Sum256([]byte(volume))
	plain := strings.Trim(safe(volume), "_")
	if len(plain) > 60 {
		plain = plain[len(plain)-60:]
	}
	return "rr_" + plain + "_" + hex.EncodeToString(h[:4])
}

// Comment is what our igroup's comment says.
func Comment(epoch uint64, owner string) string {
	return fmt.Sprintf("rerack epoch=%d owner=%s", epoch, safe(owner))
}

var epochForm = regexp.MustCompile(`^rerack epoch=([0-9]{1,20}) `)

func epochOf(comment string) uint64 {
	m := epochForm.FindStringSubmatch(comment)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func sameMembers(a, b []string) bool {
	x, y := slices.Clone(a), slices.Clone(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(slices.Compact(x), slices.Compact(y))
}
