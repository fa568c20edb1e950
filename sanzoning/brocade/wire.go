package brocade

import (
	"encoding/xml"
	"slices"
	"strings"
)

// The types below are the parts of Broadcom's published models brocade-zone.yang (revision 2021-10-08)
// and brocade-name-server.yang that are used, one field per leaf. XML, not JSON: every FOS with a REST
// interface speaks application/yang-data+xml, JSON came later, and in XML a list of one is not another
// type than a list of two.

// response is the body of every answer to a GET.
type response struct {
	XMLName   xml.Name   `xml:"Response"`
	Effective *effective `xml:"effective-configuration"`
	Defined   *defined   `xml:"defined-configuration"`
	Lock      *lock      `xml:"fabric-lock"`
	Devices   []device   `xml:"fibrechannel-name-server"`
}

// effective is /brocade-zone/effective-configuration.
type effective struct {
	XMLName          xml.Name     `xml:"effective-configuration"`
	CfgName          string       `xml:"cfg-name,omitempty"`
	Checksum         string       `xml:"checksum,omitempty"`
	CfgAction        int          `xml:"cfg-action,omitempty"`
	TransactionToken uint32       `xml:"transaction-token,omitempty"`
	EnabledZones     []deviceZone `xml:"enabled-zone,omitempty"`
}

// actionAbort is the value of cfg-action that clears pending changes.
const actionAbort = 4

// defined is /brocade-zone/defined-configuration.
type defined struct {
	XMLName xml.Name     `xml:"defined-configuration"`
	Cfgs    []cfg        `xml:"cfg,omitempty"`
	Zones   []deviceZone `xml:"zone,omitempty"`
}

type cfg struct {
	Name    string   `xml:"cfg-name"`
	Members []string `xml:"member-zone>zone-name,omitempty"`
}

// deviceZone is a zone, defined or enabled.
type deviceZone struct {
	Name       string   `xml:"zone-name"`
	TypeNumber string   `xml:"zone-type,omitempty"` // deprecated, read only
	Type       string   `xml:"zone-type-string,omitempty"`
	Members    *members `xml:"member-entry"` // none to delete the zone as a whole
}

type members struct {
	Entries    []string `xml:"entry-name"`
	Principals []string `xml:"principal-entry-name"`
}

func (z deviceZone) entries() []string {
	if z.Members == nil {
		return nil
	}
	return z.Members.Entries
}

func (z deviceZone) principals() []string {
	if z.Members == nil {
		return nil
	}
	return z.Members.Principals
}

// The values of zone-type-string.
const (
	typeZone = "zone"
	typePeer = "user-created-peer-zone"
)

func (z deviceZone) peer() bool {
	if z.Type != "" {
		return z.Type != typeZone
	}
	return z.TypeNumber == "1" || z.TypeNumber == "2"
}

// same compares what two zones let pass.
func (z deviceZone) same(other deviceZone) bool {
	return z.peer() == other.peer() && slices.Equal(canonical(z.entries()), canonical(other.entries())) &&
		slices.Equal(canonical(z.principals()), canonical(other.principals()))
}

// canonical is WWNs in order, in lower case, without duplicates; never nil.
func canonical(members []string) []string {
	out := make([]string, 0, len(members))
	for _, m := range members {
		out = append(out, strings.ToLower(strings.TrimSpace(m)))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// lock is /brocade-zone/fabric-lock (FOS 9.0 and later). All but the first leaf are there only while the
// lock is held.
type lock struct {
	Domain        int    `xml:"lock-principal-domain-id"` // 0 = free
	Token         uint32 `xml:"lock-principal-transaction-token"`
	Timeout       int    `xml:"timeout"`        // seconds
	RemainingTime int    `xml:"remaining-time"` // seconds
	User          string `xml:"client-user-name"`
	Address       string `xml:"client-ip-address"`
	Interface     string `xml:"client-interface"`
	Application   string `xml:"client-application-name"`
}

// device is an entry of /brocade-name-server/fibrechannel-name-server.
type device struct {
	PortName string `xml:"port-name"`
}

// failure is the body of an answer that is an error.
type failure struct {
	XMLName xml.Name `xml:"errors"`
	Errors  []struct {
		Message string `xml:"error-message"`
	} `xml:"error"`
}
