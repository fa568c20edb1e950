package workflows

import (
	"crypto/sha256"
	"fmt"

	"rerack.dev/rerack/orchestrator/topology"
)

// identityMAC is the MAC of a workload's virtual NIC: the declared one, or one derived from the names
// in the locally administered unicast range (IEEE 802-2014 section 8.4), the same for ever.
func identityMAC(workload string, a topology.Attachment) string {
	if a.MAC != "" {
		return string(a.MAC)
	}
	h := sha256.Sum256([]byte("mac\x00" + workload + "\x00" + a.Network))
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", h[0]&^3|2, h[1], h[2], h[3], h[4], h[5])
}

// identityUUID is the workload's UUID: the declared one, or a name-based one of version 8 (RFC 9562
// section 5.8).
func identityUUID(w topology.Workload) string {
	if w.Spec.UUID != "" {
		return w.Spec.UUID
	}
	h := sha256.Sum256([]byte("uuid\x00" + w.Meta.Name))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
