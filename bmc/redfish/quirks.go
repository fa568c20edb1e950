package redfish

import (
	"strings"

	schema "github.com/stmcginnis/gofish/redfish"
)

// quirks is how a vendor's Redfish differs from DSP0266 where it matters to power and boot. The table is
// small on purpose: what a BMC announces (settings object, allowable values) is followed for every
// vendor, and what it then does is read back by the caller.
type quirks struct {
	vendor string
	names  []string // lower case, found in ServiceRoot.Vendor, its Oem keys or the system's Manufacturer

	sendMode bool // an override without an explicit mode is ignored
	omitMode bool // an override with a mode is rejected
	ifMatch  bool // a PATCH needs If-Match
	// skuSerial: the number people know the machine by is ComputerSystem.SKU.
	skuSerial bool
}

func quirkTable() []quirks {
	return []quirks{
		{vendor: "dell", names: []string{"dell"}, skuSerial: true},
		// iLO rejects the whole PATCH for a property it holds read-only, BootSourceOverrideMode among them.
		{vendor: "hpe", names: []string{"hpe", "hewlett"}, omitMode: true},
		{vendor: "supermicro", names: []string{"supermicro"}, sendMode: true},
		{vendor: "ami", names: []string{"ami", "american megatrends"}, ifMatch: true},
		{vendor: "lenovo", names: []string{"lenovo"}, ifMatch: true},
	}
}

// quirksFor finds the vendor by the words a BMC uses of itself, each compared whole or as first word.
func quirksFor(words ...string) quirks {
	for _, w := range words {
		w = strings.ToLower(strings.TrimSpace(w))
		for _, q := range quirkTable() {
			for _, n := range q.names {
				if w == n || strings.HasPrefix(w, n+" ") || strings.HasPrefix(w, n+",") {
					return q
				}
			}
		}
	}
	return quirks{vendor: "generic"}
}

// bootPatch is the least that sets an override: vendors reject fields they do not expect.
type bootPatch struct {
	Enabled schema.BootSourceOverrideEnabled `json:"BootSourceOverrideEnabled"`
	Target  schema.BootSourceOverrideTarget  `json:"BootSourceOverrideTarget,omitempty"`
	Mode    schema.BootSourceOverrideMode    `json:"BootSourceOverrideMode,omitempty"`
}
